package main

import (
	"fmt"
	"strings"

	"github.com/godwit-cni/godwit/test/bench/table"
)

// metric names a figure; it is its line's title.
type metric string

// result is the figures of one column.
type result map[metric]float64

// Figures, in the order in which they are printed; those of each kind of change come in between.
const (
	podsServed           metric = "pods created → all have their rows, s"
	podsTransactions     metric = "  NB transactions for 100 pods"
	podsOperations       metric = "  NB operations on rows of policies for one pod"
	policiesWritten      metric = "policies created → all are in NB, s"
	policiesTransactions metric = "  NB transactions for 100 policies"
	aclsMade             metric = "  ACLs"
	northdBehind         metric = "  → SB has it all (northd), s"

	controllerCPU metric = "controller CPU a change, ms"
	northdCPU     metric = "northd CPU a change, ms"
	rss           metric = "controller RSS, MiB"
	peak          metric = "controller RSS, highest, MiB"

	mendedStandby    metric = "SIGTERM to the leader → broken rows are right again, worst, s"
	mendedOperations metric = "  NB operations on rows of policies, most"
	mendedAlone      metric = "a lone controller starts → broken rows are right again, worst, s"
	rssStarted       metric = "  its RSS, MiB"
	peakStarted      metric = "  its RSS, highest, MiB"
)

// Figures of a kind of change.
func toNB50(k kind) metric { return metric(fmt.Sprintf("one pod %s → NB has it all, p50 ms", k)) }
func toNB90(k kind) metric { return metric(fmt.Sprintf("one pod %s → NB has it all, p90 ms", k)) }
func toSB50(k kind) metric {
	return metric(fmt.Sprintf("one pod %s: NB → SB has it all (northd), p50 ms", k))
}
func toSB90(k kind) metric {
	return metric(fmt.Sprintf("one pod %s: NB → SB has it all (northd), p90 ms", k))
}
func transactions(k kind) metric { return metric(fmt.Sprintf("one pod %s: NB transactions, mean", k)) }
func operations(k kind) metric   { return metric(fmt.Sprintf("one pod %s: NB operations, mean", k)) }
func onPolicies(k kind) metric {
	return metric(fmt.Sprintf("one pod %s: of which on rows of policies, mean", k))
}
func onPoliciesMax(k kind) metric {
	return metric(fmt.Sprintf("one pod %s: of which on rows of policies, most", k))
}

func order() []metric {
	out := []metric{podsServed, podsTransactions, podsOperations, policiesWritten, policiesTransactions, aclsMade, northdBehind}
	for _, k := range []kind{created, relabelled, deleted} {
		out = append(out, toNB50(k), toNB90(k), transactions(k), operations(k), onPolicies(k), onPoliciesMax(k), toSB50(k), toSB90(k))
	}
	return append(out, controllerCPU, northdCPU, rss, peak, mendedStandby, mendedOperations, mendedAlone, rssStarted, peakStarted)
}

// add sums up the changes of a kind.
func (r result) add(k kind, s *sampled) {
	r[toNB50(k)], r[toNB90(k)] = table.Quantile(s.nb, 0.5), table.Quantile(s.nb, 0.9)
	r[toSB50(k)], r[toSB90(k)] = table.Quantile(s.sb, 0.5), table.Quantile(s.sb, 0.9)
	r[transactions(k)], r[operations(k)] = mean(s.transactions), mean(s.operations)
	r[onPolicies(k)], r[onPoliciesMax(k)] = mean(s.policies), table.Quantile(s.policies, 1)
}

type report struct {
	config  config
	names   []string
	results []result
	load    []string
}

// column begins another one.
func (r *report) column(name string) result {
	out := result{}
	r.names, r.results, r.load = append(r.names, name), append(r.results, out), append(r.load, table.LoadAverage())
	return out
}

func (r *report) table() table.Report {
	t := table.Report{Title: fmt.Sprintf("%d NetworkPolicies", r.config.policies), Unit: "units with each line", Columns: r.names}
	for _, m := range order() {
		row := table.Row{Name: string(m), Values: map[string]float64{}}
		for i, name := range r.names {
			if v, ok := r.results[i][m]; ok {
				row.Values[name] = v
			}
		}
		t.Rows = append(t.Rows, row)
	}
	t.Notes = []string{
		fmt.Sprintf("%d nodes. %d policies in each of %d namespaces; %d pods at a time that come, change their labels and go, in one of them. New leaders: %d rounds each.",
			r.config.nodes, perNamespace, r.config.policies/perNamespace, r.config.samples, rounds),
		"Transactions and operations that change something, as the controllers sent them: a relay before the database counts.",
		"etcd does not sync to disk here. Everything shares the machine, northd and the bench too. Load averages on the way: " + strings.Join(r.load, "; "),
	}
	return t
}

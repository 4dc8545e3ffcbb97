package main

import (
	"fmt"
	"strings"

	"github.com/godwit-cni/godwit/test/bench/table"
)

// metric names a figure; it is its line's title.
type metric string

// result is the figures of one number of pods.
type result map[metric]float64

// Figures, in the order in which they are printed.
const (
	served       metric = "pods created → all have identity and row, s"
	waited       metric = "controller starts on waiting pods → all have identity and row, s"
	created      metric = "  of which the bench itself created pods, s"
	bound        metric = "  → all have an SB Port_Binding, s"
	floorCreate  metric = "floor: the API server alone, creating the pods, s"
	floorPatch   metric = "floor: the API server alone, annotating them, s"
	floorRows    metric = "floor: NB alone, their rows in batches of 64, s"
	transactions metric = "NB transactions"
	perPod       metric = "NB transactions a pod"
	podWrites    metric = "API writes a pod: its annotation"
	allWrites    metric = "API writes a pod: all but the lease"
	cpu          metric = "controller CPU, s"
	rss          metric = "controller RSS, MiB"
	peak         metric = "controller RSS, highest, MiB"
	northdCPU    metric = "northd CPU, s"
	single50     metric = "one pod more → identity and row, p50 ms"
	single90     metric = "one pod more → identity and row, p90 ms"
	northd50     metric = "its row → SB Port_Binding (northd), p50 ms"
	northd90     metric = "its row → SB Port_Binding (northd), p90 ms"
	afterTerm    metric = "SIGTERM to the leader: longest wait of a pod, s"
	afterKill    metric = "kill -9 of the leader: longest wait of a pod, s"
	readyAlone   metric = "a lone controller starts → /readyz, s"
	servedAlone  metric = "a lone controller starts → new pod served, s"

	transactionsAlone  metric = "a lone controller starts: NB transactions"
	waitedTransactions metric = "  NB transactions"
	waitedCPU          metric = "  controller CPU, s"
	waitedOthers       metric = "  cores that programs of others used meanwhile"
	servedOthers       metric = "  cores that programs of others used meanwhile "
	rssAlone           metric = "a lone controller starts: RSS, MiB"
)

func order() []metric {
	return []metric{waited, waitedOthers, waitedTransactions, waitedCPU, served, servedOthers, created, bound, floorCreate, floorPatch, floorRows, transactions, perPod, podWrites, allWrites, cpu, rss, peak, northdCPU,
		single50, single90, northd50, northd90, afterTerm, afterKill, servedAlone, readyAlone, transactionsAlone, rssAlone}
}

// goals are from the issue: by number of pods, 0 for any.
func goals(m metric, n int) (float64, bool) {
	switch {
	case (m == served || m == waited) && n == 2000:
		return 8, true
	case (m == served || m == waited) && n == 10000:
		return 45, true
	case m == afterTerm:
		return 1, true
	case m == afterKill:
		return 6, true
	}
	return 0, false
}

type report struct {
	pods    []int
	results []result
	load    []string
}

func (r *report) add(n int, parts ...result) {
	all := result{}
	for _, p := range parts {
		for k, v := range p {
			all[k] = v
		}
	}
	r.pods, r.results = append(r.pods, n), append(r.results, all)
}

func (r *report) table() table.Report {
	t := table.Report{Title: "Controller at scale", Unit: "units with each line"}
	for _, n := range r.pods {
		t.Columns = append(t.Columns, column(n), column(n)+" goal")
	}
	for _, m := range order() {
		row := table.Row{Name: string(m), Values: map[string]float64{}}
		for i, n := range r.pods {
			if v, ok := r.results[i][m]; ok {
				row.Values[column(n)] = v
			}
			if g, ok := goals(m, n); ok {
				row.Values[column(n)+" goal"] = g
			}
		}
		t.Rows = append(t.Rows, row)
	}
	t.Notes = []string{
		fmt.Sprintf("Restarts: %d rounds each, the worst of them; a pod is created every %s from the signal on.", rounds, stream),
		"etcd does not sync to disk here. Everything shares the machine, northd and the bench too. Load averages on the way: " + strings.Join(r.load, "; "),
	}
	return t
}

func column(n int) string { return fmt.Sprintf("%d pods", n) }

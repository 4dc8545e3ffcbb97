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

// Figures, in the order in which they are printed.
const (
	created            metric = "Services and EndpointSlices are created, s"
	served             metric = "  → all have their rows, since the first was created, s"
	servedTransactions metric = "  NB transactions for 100 Services"
	northdBehind       metric = "  → SB has it all (northd), s"

	endNB50        metric = "one endpoint goes or comes → NB has it, p50 ms"
	endNB90        metric = "  p90 ms"
	endTransaction metric = "  NB transactions, most"
	endOperations  metric = "  NB operations, most"
	endBytes50     metric = "  bytes of them, p50"
	endBytesMost   metric = "  bytes of them, most"
	endSB50        metric = "  NB → SB has it (northd), p50 ms"
	endSB90        metric = "  NB → SB, p90 ms"
	controllerCPU  metric = "  controller CPU, ms"
	northdCPU      metric = "  northd CPU, ms"
	podNB50        metric = "one pod comes → NB has its port, p50 ms"
	podNB90        metric = "  its port, p90 ms"
	podSB50        metric = "  NB → SB has its port (northd), p50 ms"
	podSB90        metric = "  NB → SB has its port, p90 ms"
	rss            metric = "controller RSS, MiB"
)

func order() []metric {
	return []metric{
		created, served, servedTransactions, northdBehind, endNB50, endNB90, endTransaction, endOperations, endBytes50, endBytesMost, endSB50, endSB90, controllerCPU, northdCPU,
		podNB50, podNB90, podSB50, podSB90, rss,
	}
}

func (r result) endpoints(s *sampled) {
	r[endNB50], r[endNB90], r[endSB50], r[endSB90] = table.Quantile(s.nb, 0.5), table.Quantile(s.nb, 0.9), table.Quantile(s.sb, 0.5), table.Quantile(s.sb, 0.9)
	r[endTransaction], r[endOperations] = table.Quantile(s.transactions, 1), table.Quantile(s.operations, 1)
	r[endBytes50], r[endBytesMost] = table.Quantile(s.bytes, 0.5), table.Quantile(s.bytes, 1)
}

func (r result) pods(s *sampled) {
	r[podNB50], r[podNB90], r[podSB50], r[podSB90] = table.Quantile(s.nb, 0.5), table.Quantile(s.nb, 0.9), table.Quantile(s.sb, 0.5), table.Quantile(s.sb, 0.9)
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
	t := table.Report{Title: fmt.Sprintf("%d Services with %d endpoints each", r.config.services, r.config.endpoints), Unit: "units with each line", Columns: r.names}
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
		fmt.Sprintf("%d nodes; %d samples of each kind, one at a time. Northbound figures are as the controller sent them: a relay before the database counts.", r.config.nodes, r.config.samples),
		"NB → SB is what ovn-nbctl --wait=sb sync took. etcd does not sync to disk here. Everything shares the machine, northd and the bench too. Load averages on the way: " +
			strings.Join(r.load, "; "),
	}
	return t
}

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/bench/table"
)

// way is how the client gets to the server.
type way string

const (
	toPod           way = "pod"
	toClusterIP     way = "ClusterIP"
	withoutServices way = "pod, no Services"
)

// metric names a figure.
type metric string

const (
	rate       metric = "new connections, 1/s"
	rateCPU    metric = "  ovs-vswitchd's CPU for one, µs"
	speed      metric = "one stream, MiB/s"
	speedCPU   metric = "  ovs-vswitchd's CPU for a MiB, µs"
	latency50  metric = "request and answer, p50, µs"
	latency99  metric = "  p99, µs"
	latencyCPU metric = "  ovs-vswitchd's CPU for one of each, µs"
)

// kind is a measurement and the figures that it gives: rate is what was done in a second, cost what ovs-vswitchd used of processors for one.
type kind struct {
	measure    func(context.Context, client) (work, error)
	rate, cost metric
}

func kinds() []kind {
	return []kind{
		{measure: func(ctx context.Context, c client) (work, error) { return c.connections(ctx) }, rate: rate, cost: rateCPU},
		{measure: func(ctx context.Context, c client) (work, error) { return c.stream(ctx) }, rate: speed, cost: speedCPU},
		{measure: func(ctx context.Context, c client) (work, error) { return c.requests(ctx) }, cost: latencyCPU},
	}
}

// sum is the figures of a measurement, beside which ovs-vswitchd used so much of processors.
func (k kind) sum(w work, cpu time.Duration) map[metric]float64 {
	out := map[metric]float64{k.cost: float64(cpu.Microseconds()) / w.done}
	if k.rate != "" {
		out[k.rate] = w.done / w.took.Seconds()
	}
	if len(w.each) > 0 {
		out[latency50], out[latency99] = table.Quantile(w.each, 0.5), table.Quantile(w.each, 0.99)
	}
	return out
}

// sample is what is measured in each round.
type sample struct {
	path path
	way  way
}

// figures are those of all rounds, in their order.
type figures map[sample]map[metric][]float64

func (f figures) add(s sample, m metric, v float64) {
	if f[s] == nil {
		f[s] = map[metric][]float64{}
	}
	f[s][m] = append(f[s][m], v)
}

// Columns beside those of the ways: what the ClusterIP was of the pod in the same round, the median of the rounds and those that were furthest from it; and what the pod's
// median without Services is of that with them, which were measured minutes apart.
const (
	ratio, ratioLeast, ratioMost = "ClusterIP, % of pod", "of a round, least", "most"
	ratioWithout                 = "no Services, % of pod"
)

func columns() []string {
	return []string{string(toPod), string(toClusterIP), ratio, ratioLeast, ratioMost, string(withoutServices), ratioWithout}
}

// rows are the medians of a path's figures.
func (f figures) rows(p path) []table.Row {
	var out []table.Row
	for _, m := range []metric{rate, rateCPU, speed, speedCPU, latency50, latency99, latencyCPU} {
		row := table.Row{Name: fmt.Sprintf("%s: %s", p, m), Values: map[string]float64{}}
		for _, w := range []way{toPod, toClusterIP, withoutServices} {
			if v := f[sample{p, w}][m]; len(v) > 0 {
				row.Values[string(w)] = round(median(v))
			}
		}
		pod, vip := f[sample{p, toPod}][m], f[sample{p, toClusterIP}][m]
		if without := f[sample{p, withoutServices}][m]; len(pod) > 0 && len(without) > 0 {
			row.Values[ratioWithout] = 100 * median(without) / median(pod)
		}
		var each []float64
		for i := range min(len(pod), len(vip)) {
			if pod[i] > 0 {
				each = append(each, 100*vip[i]/pod[i])
			}
		}
		if len(each) > 0 {
			row.Values[ratio], row.Values[ratioLeast], row.Values[ratioMost] = median(each), slices.Min(each), slices.Max(each)
		}
		out = append(out, row)
	}
	return out
}

// round leaves figures their first three digits at least.
func round(v float64) float64 {
	if v < 100 {
		return v
	}
	return math.Round(v)
}

// median of at least one.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// report prints the table and saves it with what each round measured, also after an error.
func (b *bench) report(out io.Writer, failed error) error {
	t := table.Report{Title: fmt.Sprintf("A pod's connections to a pod and to a ClusterIP, medians of %d rounds", b.rounds), Unit: "units with each line", Columns: columns()}
	rounds := map[string][]float64{}
	for _, p := range []path{otherNodes, sameNode} {
		t.Rows = append(t.Rows, b.figures.rows(p)...)
		for _, w := range []way{toPod, toClusterIP, withoutServices} {
			for m, v := range b.figures[sample{p, w}] {
				rounds[fmt.Sprintf("%s: %s: %s", p, w, strings.TrimSpace(string(m)))] = v
			}
		}
	}
	t.Notes = []string{
		fmt.Sprintf("Each measurement %s. New connections: %d at once, each has %d bytes answered and is closed. Stream and requests: one connection, client to server.", b.length, b.workers, lineSize),
		"No Services: the controllers have --services=false, so that no switch has load balancers; in the middle of the run. ovs-vswitchd: of both nodes, forwarding included.",
		fmt.Sprintf("Connections that failed: %d to the pods, %d to the ClusterIPs, %d without Services.", b.failed[toPod], b.failed[toClusterIP], b.failed[withoutServices]),
		"Client, servers and nodes share the machine. Load averages after each round: " + strings.Join(b.load, "; "),
	}
	if failed != nil {
		t.Notes = append(t.Notes, "INCOMPLETE: "+failed.Error())
	}
	if err := t.Print(out); err != nil {
		return err
	}
	return table.Save("paths", struct {
		table.Report
		Rounds map[string][]float64 `json:"rounds"`
	}{t, rounds})
}

package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/godwit-cni/godwit/test/bench/table"
)

const (
	p50, p90, most                        = "p50", "p90", "max"
	singleCount, singleMedian, singleMost = "single n", "single p50", "single max"
)

// results is what is saved.
type results struct {
	table.Report
	Seconds float64 `json:"seconds"`
	// Spread is how many VMs each node has got.
	Spread map[string]int `json:"spread"`
	// Connections were held, Broken says of each of them that broke why. Lost is what VMs have not kept, Differences are the lab's check's.
	Connections int      `json:"connections"`
	Broken      []string `json:"broken,omitempty"`
	Lost        []string `json:"lost,omitempty"`
	Differences []string `json:"differences,omitempty"`
	Singles     []move   `json:"singles"`
	Drained     []move   `json:"drained"`
}

// figure of a migration; nil where there is none.
type figure struct {
	name string
	of   func(move) *float64
}

func figures() []figure {
	beyond := func(m move, v *float64) *float64 {
		if v == nil {
			return nil
		}
		d := *v - m.Stop
		return &d
	}
	return []figure{
		{"QEMU's own stop", func(m move) *float64 { return &m.Stop }},
		{"probes without an answer", func(m move) *float64 { return &m.Unanswered }},
		{"  beyond QEMU's stop", func(m move) *float64 { return beyond(m, &m.Unanswered) }},
		{"PortMigration's interruption", func(m move) *float64 { return m.Recorded }},
		{"  beyond QEMU's stop", func(m move) *float64 { return beyond(m, m.Recorded) }},
	}
}

func values(all []move, of func(move) *float64) (v []float64) {
	for _, m := range all {
		if f := of(m); f != nil {
			v = append(v, *f)
		}
	}
	return v
}

// summary makes the table: the drain's quantiles, and beside them the single migrations'.
func summary(singles, drained []move) table.Report {
	r := table.Report{Unit: "ms", Columns: []string{"n", p50, p90, most, singleCount, singleMedian, singleMost}}
	for _, f := range figures() {
		row := table.Row{Name: f.name, Values: map[string]float64{}}
		if v := values(drained, f.of); len(v) > 0 {
			row = table.Quantiles(f.name, v)
		}
		if v := values(singles, f.of); len(v) > 0 {
			row.Values[singleCount], row.Values[singleMedian], row.Values[singleMost] = float64(len(v)), table.Quantile(v, 0.5), slices.Max(v)
		}
		r.Rows = append(r.Rows, row)
	}
	return r
}

// report prints and saves what was measured, and fails if a VM or a connection has lost something.
func (b *bench) report(w io.Writer) error {
	r := results{Seconds: b.took.Seconds(), Spread: b.spread, Singles: b.singles, Differences: b.differences}
	var stalls []float64
	for _, g := range b.guests {
		stalls = append(stalls, g.stalls...)
		if g.node == b.drained {
			r.Drained = append(r.Drained, g.evacuation)
		}
		r.Connections += connections
		for _, why := range g.broken {
			r.Broken = append(r.Broken, fmt.Sprintf("VM %s: %s", g, why))
		}
		if g.lost != "" {
			r.Lost = append(r.Lost, fmt.Sprintf("VM %s: %s", g, g.lost))
		}
	}
	r.Report = summary(b.singles, r.Drained)
	r.Title = fmt.Sprintf("kubectl drain of a node with %d of %d VMs, beside %d migrations one at a time", len(r.Drained), len(b.guests), len(b.singles))
	r.Notes = append(r.Notes,
		fmt.Sprintf("The drain took %.1f s. Where its VMs are then: %v.", r.Seconds, b.spread),
		fmt.Sprintf("%d of %d connections broke, %d VMs have not kept their addresses and their row, the check found %d differences.", len(r.Broken), r.Connections, len(r.Lost),
			len(r.Differences)),
		fmt.Sprintf("The longest time without an answer on a connection, which asks every %s: p50 %.0f, p90 %.0f, max %.0f ms.", echoes, table.Quantile(stalls, 0.5), table.Quantile(stalls, 0.9),
			table.Quantile(stalls, 1)),
		fmt.Sprintf("A probe every %s to each VM that moves. Load average: %s.", interval, table.LoadAverage()))
	r.Notes = slices.Concat(r.Notes, r.Broken, r.Lost, r.Differences)
	if err := r.Print(w); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	if err := table.Save("drain", r); err != nil {
		return err
	}
	if len(r.Broken)+len(r.Lost)+len(r.Differences) > 0 {
		return fmt.Errorf("%d connections broke, %d VMs lost something, %d differences: want none", len(r.Broken), len(r.Lost), len(r.Differences))
	}
	return nil
}

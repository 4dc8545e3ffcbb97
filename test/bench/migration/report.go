package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// results is what is saved.
type results struct {
	table.Report
	Goals []goal `json:"goals"`
	// Complete says that no migration is missing.
	Complete   bool     `json:"complete"`
	Migrations []sample `json:"migrations"`
}

// figure is a line of the table.
type figure struct {
	name string
	of   func(sample) *float64
	// sums says that the sum of all tells something.
	sums bool
}

func number(name string, f func(sample) int) figure {
	return figure{name: name, of: func(s sample) *float64 { return pointer(float64(f(s))) }, sums: true}
}

func moment(s step) figure {
	return figure{name: "  " + string(s), of: func(x sample) *float64 {
		if v, ok := x.Steps[s]; ok {
			return &v
		}
		return nil
	}}
}

func figures() []figure {
	all := []figure{
		{name: "QEMU's own stop", of: func(s sample) *float64 { return &s.Stop }},
		{name: "probes without an answer", of: func(s sample) *float64 { return &s.Unanswered }},
		{name: "  beyond QEMU's stop", of: beyond},
		{name: "probes that did not get to the guest, beyond QEMU's stop", of: func(s sample) *float64 { return pointer(s.Unreached - s.Stop) }},
		{name: "PortMigration's interruption beyond QEMU's stop", of: beyondRecorded},
		{name: "silence of answers beyond QEMU's stop", of: func(s sample) *float64 { return pointer(s.SilenceTo - s.Stop) }},
		{name: "silence of the VM beyond QEMU's stop", of: func(s sample) *float64 { return pointer(s.SilenceFrom - s.Stop) }},
		{name: "longest silence while nothing was done", of: func(s sample) *float64 { return &s.Undisturbed }},
		number("probes lost to the VM", func(s sample) int { return s.LostTo }),
		number("  at QEMU's stop, which the guest never got", func(s sample) int { return s.AtStop }),
		{name: "frames lost on the source's link, by its agent", of: func(s sample) *float64 { return s.FramesLost }, sums: true},
		{name: "frames that waited on the target's link, by its agent", of: func(s sample) *float64 { return s.FramesQueued }, sums: true},
		number("probes lost from the VM", func(s sample) int { return s.LostFrom }),
		number("duplicates delivered to the guest", func(s sample) int { return s.ToGuest }),
		number("duplicates delivered to its peer", func(s sample) int { return s.ToPeer }),
		number("connections held", func(s sample) int { return s.Connections }),
		number("connections broken", func(s sample) int { return s.Broken }),
		number("frames from the target before its announcement", func(s sample) int { return int(s.FramesBefore) }),
		number("changes of the VM's northbound row", func(s sample) int { return s.Writes }),
		number("northbound transactions of the controllers", func(s sample) int { return s.Transactions }),
		{name: "target pod has a node → options written", of: func(s sample) *float64 { return s.ToOptions }},
	}
	all = append(all, figure{name: "since QEMU's STOP:", of: func(sample) *float64 { return nil }})
	for _, s := range steps() {
		all = append(all, moment(s))
	}
	return all
}

// row is a figure's line: Godwit's own quantiles, and beside them the baselines' median and maximum.
func (f figure) row(all []sample) table.Row {
	row := table.Row{Name: f.name, Values: map[string]float64{}}
	if v := values(of(all, ""), f.of); len(v) > 0 {
		row = table.Quantiles(f.name, v)
		if f.sums {
			row.Values[total] = 0
			for _, x := range v {
				row.Values[total] += x
			}
		}
	}
	for _, kind := range []migration.Baseline{silent, migration.BaselineFlip, migration.BaselineClone} {
		if v := values(of(all, kind), f.of); len(v) > 0 {
			row.Values[beside(kind, p50)], row.Values[beside(kind, most)] = quantile(v, p50), quantile(v, most)
		}
	}
	for column, v := range row.Values {
		row.Values[column] = math.Round(v*10) / 10
	}
	return row
}

// beside is a column of a baseline.
func beside(kind migration.Baseline, column string) string { return string(kind) + " " + column }

// report prints and saves what was measured; failed says why something is missing.
func (b *bench) report(w io.Writer, failed error) error {
	if len(b.samples) == 0 {
		return nil
	}
	r := summary(b.samples)
	r.Complete = failed == nil
	if failed != nil {
		r.Notes = append(r.Notes, "This run is not complete.")
	}
	if err := r.Print(w); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return table.Save("migration", r)
}

// distribution says how many migrations lost how many probes to the VM at its stop.
func distribution(kind migration.Baseline, all []sample) string {
	n := map[int]int{}
	for _, s := range all {
		n[s.AtStop]++
	}
	var parts []string
	for _, lost := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%d in %d", lost, n[lost]))
	}
	return fmt.Sprintf("probes lost to the VM at QEMU's stop, %s: %s", title(kind), strings.Join(parts, ", "))
}

// summary makes the table and the verdicts.
func summary(all []sample) results {
	ours, flip, clone := of(all, ""), of(all, migration.BaselineFlip), of(all, migration.BaselineClone)
	r := results{Goals: goals(all), Migrations: all}
	r.Title = fmt.Sprintf("Live migration: %d by Godwit; %d without the switch-over's signal; %d that flip the port at success; %d on two chassis without an activation strategy", len(ours), len(of(all, silent)), len(flip), len(clone))
	r.Unit = "ms, and numbers"
	r.Columns = []string{
		p50, p90, most, total, beside(silent, p50), beside(silent, most), beside(migration.BaselineFlip, p50), beside(migration.BaselineFlip, most), beside(migration.BaselineClone, p50), beside(migration.BaselineClone, most),
	}
	for _, f := range figures() {
		r.Rows = append(r.Rows, f.row(all))
	}
	for _, kind := range []migration.Baseline{"", silent} {
		r.Notes = append(r.Notes, distribution(kind, of(all, kind)))
	}
	for _, g := range r.Goals {
		r.Notes = append(r.Notes, g.String())
	}
	return r
}

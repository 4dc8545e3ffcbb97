package main

import (
	"fmt"
	"io"

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

// figure is a line of the table for each means.
type figure struct {
	name string
	of   func(sample) *float64
}

func whole(f func(sample) int) func(sample) *float64 {
	return func(s sample) *float64 { return pointer(float64(f(s))) }
}

func figures() []figure {
	return []figure{
		{"QEMU's own stop", func(s sample) *float64 { return &s.Stop }},
		{"probes without an answer", func(s sample) *float64 { return &s.Unanswered }},
		{"… beyond QEMU's stop", beyond},
		{"PortMigration's interruption beyond QEMU's stop", beyondRecorded},
		{"silence of answers beyond QEMU's stop", func(s sample) *float64 { return pointer(s.SilenceTo - s.Stop) }},
		{"silence of the VM beyond QEMU's stop", func(s sample) *float64 { return pointer(s.SilenceFrom - s.Stop) }},
		{"longest silence while nothing was done", func(s sample) *float64 { return &s.Undisturbed }},
		{"probes lost to the VM", whole(func(s sample) int { return s.LostTo })},
		{"probes lost from the VM", whole(func(s sample) int { return s.LostFrom })},
		{"duplicates delivered to the guest", whole(func(s sample) int { return s.ToGuest })},
		{"duplicates delivered to its peer", whole(func(s sample) int { return s.ToPeer })},
		{"connections held", whole(func(s sample) int { return s.Connections })},
		{"connections broken", whole(func(s sample) int { return s.Broken })},
		{"frames from the target before its announcement", whole(func(s sample) int { return int(s.FramesBefore) })},
		{"changes of the VM's northbound row", whole(func(s sample) int { return s.Writes })},
		{"northbound transactions of the controllers", whole(func(s sample) int { return s.Transactions })},
		{"target pod has a node → options written", func(s sample) *float64 { return s.ToOptions }},
		{"… as the controller says it", func(s sample) *float64 { return s.ToPrepared }},
	}
}

// counts are the figures whose sum says something.
func (f figure) row(kind string, all []sample) (table.Row, bool) {
	v := values(all, f.of)
	if len(v) == 0 {
		return table.Row{}, false
	}
	row := table.Quantiles(f.name+": "+kind, v)
	var sum float64
	whole := true
	for _, x := range v {
		sum += x
		whole = whole && x == float64(int(x))
	}
	if whole {
		row.Values[total] = sum
	}
	return row, true
}

// report prints and saves what was measured.
func (b *bench) report(w io.Writer, complete bool) error {
	if len(b.samples) == 0 {
		return nil
	}
	r := summary(b.samples)
	r.Complete = complete
	if !complete {
		r.Notes = append(r.Notes, "This run is not complete.")
	}
	if err := r.Print(w); err != nil {
		return err
	}
	return table.Save("migration", r)
}

// summary makes the table and the verdicts.
func summary(all []sample) results {
	r := results{
		Report: table.Report{Title: "Live migration", Unit: "ms, and numbers", Columns: []string{"n", p50, p90, most, total}},
		Goals:  goals(all), Migrations: all,
	}
	add := func(f figure, kind string, of []sample) {
		if row, ok := f.row(kind, of); ok {
			r.Rows = append(r.Rows, row)
		}
	}
	for _, f := range figures() {
		for _, kind := range kinds() {
			add(f, title(kind), of(all, kind))
		}
	}
	if ours := of(all, ""); len(ours) > 0 {
		add(figure{"probes without an answer beyond QEMU's stop", beyond}, "Godwit's first", ours[:1])
		add(figure{"probes without an answer beyond QEMU's stop", beyond}, "Godwit's others", ours[1:])
	}
	for _, kind := range kinds() {
		for _, s := range steps() {
			add(figure{"since QEMU's STOP, " + string(s), func(x sample) *float64 {
				if v, ok := x.Steps[s]; ok {
					return &v
				}
				return nil
			}}, title(kind), of(all, kind))
		}
	}
	r.Notes = append(r.Notes, fmt.Sprintf("Goals, of %d migrations:", len(of(all, ""))))
	for _, g := range r.Goals {
		r.Notes = append(r.Notes, g.String())
	}
	return r
}

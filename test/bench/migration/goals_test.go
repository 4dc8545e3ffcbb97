package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// good are figures that meet every goal: Godwit's median is 10 ms beyond QEMU's stop, a flip's 1,000.
func good() []sample {
	var all []sample
	for i := range 10 {
		all = append(all, sample{
			Stop: 10, Unanswered: 15 + float64(i), Recorded: pointer(20), Connections: 20, Writes: 2, Transactions: 2, ToOptions: pointer(5),
			ActivatedBy: string(v1alpha1.ActivatedBySignal),
		})
	}
	for range 2 {
		all = append(all, sample{Kind: migration.BaselineFlip, Stop: 10, Unanswered: 1010, Connections: 20, Writes: 1, Transactions: 1},
			sample{Kind: migration.BaselineClone, Stop: 10, Unanswered: 300, Connections: 20, Broken: 20, ToGuest: 300, Writes: 2, Transactions: 2})
	}
	return all
}

func TestGoals(t *testing.T) {
	for name, c := range map[string]struct {
		change func([]sample) []sample
		// missed are in the names of all goals that are not met, in their order.
		missed []string
	}{
		"all is well":            {func(all []sample) []sample { return all }, nil},
		"the worst is at 101 ms": {func(all []sample) []sample { all[5].Unanswered = 111; return all }, []string{"answer beyond QEMU's stop, max"}},
		"the median is too high": {func(all []sample) []sample {
			for i := range all[:10] {
				all[i].Unanswered = 40
			}
			return all
		}, []string{"answer beyond QEMU's stop, p50"}},
		"the record says more":   {func(all []sample) []sample { all[2].Recorded = pointer(200); return all }, []string{"interruption beyond QEMU's stop, max"}},
		"a connection broke":     {func(all []sample) []sample { all[3].Broken = 1; return all }, []string{"broken connections"}},
		"a duplicate":            {func(all []sample) []sample { all[3].ToGuest = 1; return all }, []string{"duplicates"}},
		"a frame too early":      {func(all []sample) []sample { all[3].FramesBefore = 1; return all }, []string{"frames from the target"}},
		"a third write":          {func(all []sample) []sample { all[3].Writes, all[3].Transactions = 3, 3; return all }, []string{"transactions"}},
		"a write of another":     {func(all []sample) []sample { all[3].Transactions = 3; return all }, []string{"transactions"}},
		"the first is the worst": {func(all []sample) []sample { all[0].Unanswered = 30; return all }, []string{"first migration"}},
		"one was not signalled":  {func(all []sample) []sample { all[3].ActivatedBy = "RARP"; return all }, []string{"probes lost"}},
		"probes are lost": {func(all []sample) []sample {
			for i := range all[:10] {
				all[i].AtStop = 2
			}
			return all
		}, []string{"probes lost"}},
		"flip is as good": {func(all []sample) []sample {
			for i := range all {
				if all[i].Kind == migration.BaselineFlip {
					all[i].Unanswered = 30
				}
			}
			return all
		}, []string{"times better"}},
		"no flip":     {func(all []sample) []sample { return of(all, "") }, []string{"times better"}},
		"one is late": {func(all []sample) []sample { all[9].ToOptions = pointer(21); return all }, []string{"options written, max"}},
		"nothing recorded": {func(all []sample) []sample {
			for i := range all {
				all[i].Recorded = nil
			}
			return all
		}, []string{"interruption beyond QEMU's stop, p50", "interruption beyond QEMU's stop, max"}},
	} {
		t.Run(name, func(t *testing.T) {
			missed := slices.DeleteFunc(goals(c.change(good())), func(g goal) bool { return g.Met })
			ok := len(missed) == len(c.missed)
			for i := range min(len(missed), len(c.missed)) {
				ok = ok && strings.Contains(missed[i].Name, c.missed[i])
			}
			if !ok {
				t.Errorf("not met: %v: want those with %q", missed, c.missed)
			}
		})
	}
}

// Without a single migration nothing is met, and nothing breaks.
func TestGoalsOfNothing(t *testing.T) {
	for _, g := range goals(nil) {
		if g.Met {
			t.Errorf("%s: met by no migration at all", g)
		}
	}
}

func TestSummary(t *testing.T) {
	r := summary(good())
	row := slices.IndexFunc(r.Rows, func(row table.Row) bool { return strings.Contains(row.Name, "beyond QEMU's stop") })
	got := r.Rows[row].Values
	for column, want := range map[string]float64{p50: 10, p90: 14, most: 14, "flip p50": 1000, "flip max": 1000, "clone p50": 290, "clone max": 290} {
		if got[column] != want {
			t.Errorf("%s of %q: %v, want %v", column, r.Rows[row].Name, got[column], want)
		}
	}
	broken := slices.IndexFunc(r.Rows, func(row table.Row) bool { return row.Name == "connections broken" })
	if v, ok := r.Rows[broken].Values[total]; !ok || v != 0 {
		t.Errorf("sum of broken connections: %v, %t: want 0", v, ok)
	}
	if len(r.Goals)+2 != len(r.Notes) || len(r.Migrations) != len(good()) {
		t.Errorf("%d goals, %d notes, %d migrations: want a line for each goal and two for what was lost, and every migration", len(r.Goals), len(r.Notes), len(r.Migrations))
	}
}

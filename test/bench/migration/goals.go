package main

import (
	"fmt"
	"slices"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// Goals of a migration. Times are in milliseconds.
const (
	goalMedian, goalMax   = 25, 100
	goalBetter            = 3
	goalWrites            = 2
	goalOptions           = 20
	resolution            = 5 // of the probes
	p50, p90, most, total = "p50", "p90", "max", "sum"
)

// goal is one goal, and what came of it.
type goal struct {
	Name string `json:"name"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

func (g goal) String() string {
	met := "met"
	if !g.Met {
		met = "NOT met"
	}
	return fmt.Sprintf("%-8s %s: %s, want %s", met, g.Name, g.Got, g.Want)
}

// of are the samples of a means.
func of(all []sample, kind migration.Baseline) []sample {
	return slices.DeleteFunc(slices.Clone(all), func(s sample) bool { return s.Kind != kind })
}

// values are the figures of samples, of those that have one.
func values(all []sample, figure func(sample) *float64) []float64 {
	var out []float64
	for _, s := range all {
		if v := figure(s); v != nil {
			out = append(out, *v)
		}
	}
	return out
}

// sum of whole numbers.
func sum(all []sample, figure func(sample) int) (n int) {
	for _, s := range all {
		n += figure(s)
	}
	return n
}

// quantile of figures that are there, by table.Quantiles.
func quantile(v []float64, column string) float64 { return table.Quantiles("", v).Values[column] }

// beyond is what the network added to QEMU's stop, by the probes; beyondRecorded by the PortMigration.
func beyond(s sample) *float64 { return pointer(s.Unanswered - s.Stop) }

func beyondRecorded(s sample) *float64 {
	if s.Recorded == nil {
		return nil
	}
	return pointer(*s.Recorded - s.Stop)
}

// goals compares what was measured with what is wanted. A goal whose figure is missing is not met.
func goals(all []sample) []goal {
	ours := of(all, "")
	out := append(interrupted("probes without an answer", values(ours, beyond)), interrupted("PortMigration's interruption", values(ours, beyondRecorded))...)
	out = append(out, counted(ours)...)
	return append(out, signalled(ours), firstMigration(ours), better(all), prompt(ours, p50), prompt(ours, most))
}

func interrupted(what string, v []float64) []goal {
	limit := func(column string, want float64) goal {
		g := goal{Name: what + " beyond QEMU's stop, " + column, Want: fmt.Sprintf("%v ms at most", want), Got: "no figure"}
		if len(v) > 0 {
			got := quantile(v, column)
			g.Got, g.Met = ms(got)+" ms", got <= want
		}
		return g
	}
	return []goal{limit(p50, goalMedian), limit(most, goalMax)}
}

// counted are the goals that are whole numbers.
func counted(ours []sample) []goal {
	none := func(name string, got int, detail string) goal {
		return goal{Name: name, Want: "none", Got: fmt.Sprint(got) + detail, Met: got == 0 && len(ours) > 0}
	}
	connections := sum(ours, func(s sample) int { return s.Connections })
	broken := none("broken connections", sum(ours, func(s sample) int { return s.Broken }), fmt.Sprintf(" of %d", connections))
	broken.Met = broken.Met && connections > 0
	most := 0
	least := goalWrites
	for _, s := range ours {
		most, least = max(most, s.Transactions, s.Writes), min(least, s.Writes)
	}
	return []goal{
		broken,
		none("duplicates delivered to the guest", sum(ours, func(s sample) int { return s.ToGuest }), ""),
		none("frames from the target before its announcement", sum(ours, func(s sample) int { return int(s.FramesBefore) }), ""),
		{
			Name: "northbound transactions a migration, at most", Want: fmt.Sprint(goalWrites), Got: fmt.Sprint(most),
			Met: most == goalWrites && least == goalWrites,
		},
	}
}

// signalled is what the switch-over's signal is for.
func signalled(ours []sample) goal {
	g := goal{Name: "probes lost to the VM at QEMU's stop, p50", Want: "1 at most", Got: "no figure"}
	by := sum(ours, func(s sample) int {
		if s.ActivatedBy == string(v1alpha1.ActivatedBySignal) {
			return 1
		}
		return 0
	})
	if len(ours) > 0 {
		got := quantile(values(ours, func(s sample) *float64 { return pointer(float64(s.AtStop)) }), p50)
		g.Got, g.Met = fmt.Sprintf("%v; %d of %d opened by the signal", got, by, len(ours)), got <= 1 && by == len(ours)
	}
	return g
}

// firstMigration is that of a lab or VM that has seen none.
func firstMigration(ours []sample) goal {
	g := goal{Name: "the first migration, beyond QEMU's stop", Want: "no more than the worst of the others", Got: "no figure"}
	if len(ours) > 1 {
		got, rest := *beyond(ours[0]), quantile(values(ours[1:], beyond), most)
		g.Got, g.Want, g.Met = ms(got)+" ms", fmt.Sprintf("no more than the worst of the others, %s ms", ms(rest)), got <= rest
	}
	return g
}

// better compares with the flip. What is below the probes' resolution counts as that.
func better(all []sample) goal {
	g := goal{Name: "times better than a flip at success, p50", Want: fmt.Sprintf("%d at least", goalBetter), Got: "no figure"}
	ours, flip := values(of(all, ""), beyond), values(of(all, migration.BaselineFlip), beyond)
	if len(ours) > 0 && len(flip) > 0 {
		got := quantile(flip, p50) / max(quantile(ours, p50), resolution)
		g.Got, g.Met = ms(got), got >= goalBetter
	}
	return g
}

func prompt(ours []sample, column string) goal {
	g := goal{Name: "from the target pod has a node to options written, " + column, Want: fmt.Sprintf("%d ms at most", goalOptions), Got: "no figure"}
	if v := values(ours, func(s sample) *float64 { return s.ToOptions }); len(v) > 0 {
		got := quantile(v, column)
		g.Got, g.Met = ms(got)+" ms", got <= goalOptions
	}
	return g
}

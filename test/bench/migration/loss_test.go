package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/lab/traffic"
	"github.com/godwit-cni/godwit/test/lab/traffic/traffictest"
)

// A loss that has nothing to do with the switch-over does not count, one that begins soon after it does; an answer in between makes two of it.
func TestUnanswered(t *testing.T) {
	for name, c := range map[string]struct {
		lost [][2]int
		want float64
	}{
		"none":                    {nil, 0},
		"while it was stopped":    {[][2]int{{100, 120}}, 20},
		"long after":              {[][2]int{{100, 120}, {200, 210}, {700, 800}}, 20},
		"soon after":              {[][2]int{{100, 120}, {560, 600}}, 40},
		"long before":             {[][2]int{{20, 90}}, 0},
		"from before the stop on": {[][2]int{{20, 110}}, 90},
		"to the very end":         {[][2]int{{500, 1000}}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			r := probes(0, 0)
			for _, l := range c.lost {
				for ms := l[0]; ms < l[1]; ms += 5 {
					r.Arrived[ms/5] = traffic.Never
				}
			}
			if got := interrupting(losses(&r, traffictest.Arrivals(r), at(100)), 10).length(); got != c.want {
				t.Errorf("unanswered for %v ms: want %v", got, c.want)
			}
		})
	}
}

// What the guest got though nobody got its answer is told apart.
func TestLosses(t *testing.T) {
	r := probes(100, 120)
	a := traffictest.Arrivals(r)
	a.Flows[0].Seq, a.Flows[0].At = append(a.Flows[0].Seq, 21, 22), append(a.Flows[0].At, 0, 0)
	r.Arrived[50] = traffic.Never
	want := []loss{{From: -10, To: 10, Probes: 4, Arrived: 2}, {From: 140, To: 145, Probes: 1, Arrived: 1}}
	a.Flows[0].Seq, a.Flows[0].At = append(a.Flows[0].Seq, 50), append(a.Flows[0].At, 0)
	if diff := cmp.Diff(want, losses(&r, a, at(110))); diff != "" {
		t.Errorf("losses (-want +got):\n%s", diff)
	}
	if got := kept(append(want, loss{From: 700, To: 710, Probes: 2}), 20); got != 2 {
		t.Errorf("the guest did not get %d at its stop: want 2", got)
	}
	want = []loss{{From: -10, To: -5, Probes: 1}, {From: 5, To: 10, Probes: 1}}
	if diff := cmp.Diff(want, unreached(&r, a, at(110))); diff != "" {
		t.Errorf("those that did not reach the guest (-want +got):\n%s", diff)
	}
}

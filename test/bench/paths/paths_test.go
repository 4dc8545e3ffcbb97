package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/bench/table"
)

// On loopback: whatever a client counts did happen.
func TestClient(t *testing.T) {
	p := make(ports, 3)
	if err := listen(t.Context(), "", p); err != nil {
		t.Fatal(err)
	}
	c := client{server: netip.MustParseAddr("127.0.0.1"), ports: p, length: 50 * time.Millisecond, workers: 4}
	for _, k := range kinds() {
		w, err := k.measure(t.Context(), c)
		if err != nil {
			t.Fatalf("%s: %v", k.cost, err)
		}
		if w.done <= 0 || w.failed != 0 || w.took < c.length {
			t.Errorf("%s: %v done, %d failed in %s; want some, none, and at least %s", k.cost, w.done, w.failed, w.took, c.length)
		}
		for m, v := range k.sum(w, time.Second) {
			if v <= 0 {
				t.Errorf("%s is %v, want more than 0", m, v)
			}
		}
	}
}

func TestClientSaysThatNobodyAnswers(t *testing.T) {
	c := client{server: netip.MustParseAddr("127.0.0.1"), ports: ports{1, 1}, length: 10 * time.Millisecond, workers: 1} // tcpmux, which nobody serves
	for _, k := range kinds() {
		if w, err := k.measure(t.Context(), c); err == nil {
			t.Errorf("%s: %+v, want an error", k.cost, w)
		}
	}
}

func TestRows(t *testing.T) {
	f := figures{}
	for _, v := range []float64{100, 400, 200} {
		f.add(sample{sameNode, toPod}, rate, v)
	}
	for _, v := range []float64{50, 360, 100} {
		f.add(sample{sameNode, toClusterIP}, rate, v)
	}
	f.add(sample{sameNode, withoutServices}, rate, 300)
	f.add(sample{sameNode, withoutServices}, rate, 500)
	want := table.Row{Name: "on one node: new connections, 1/s", Values: map[string]float64{
		"pod": 200, "ClusterIP": 100, ratio: 50, ratioLeast: 50, ratioMost: 90, "pod, no Services": 400, ratioWithout: 200,
	}}
	if diff := cmp.Diff(want, f.rows(sameNode)[0]); diff != "" {
		t.Error(diff)
	}
}

func TestOptions(t *testing.T) {
	t.Setenv("COUNT", "3")
	t.Setenv("DURATION", "2s")
	c, err := options([]string{"-workers", "8"})
	if err != nil || c.rounds != 3 || c.length != 2*time.Second || c.workers != 8 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, args := range [][]string{{"-rounds", "0"}, {"-workers", "0"}, {"-length", "1ms"}} {
		if _, err := options(args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

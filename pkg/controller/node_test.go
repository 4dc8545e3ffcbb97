package controller

import (
	"testing"
	"time"
)

// A node that is gone keeps its port until its chassis has stayed away for a while, however often it is forgotten meanwhile.
func TestGoneNodeKeepsItsPort(t *testing.T) {
	r := &nodeReconciler{gone: map[string]time.Time{}}
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		found bool
		want  time.Duration
	}{
		{0, true, chassisReturn},
		{time.Millisecond, false, chassisReturn - time.Millisecond},
		{chassisReturn / 2, true, chassisReturn}, // it has come back
		{chassisReturn, false, chassisReturn / 2},
		{3 * chassisReturn / 2, false, 0},
		{3*chassisReturn/2 + time.Second, false, 0},
	} {
		if c.found {
			r.left("n", start.Add(c.after))
		}
		if got := r.awaited("n", start.Add(c.after)); got != c.want {
			t.Errorf("%s after, its chassis found: %v: the port stays for %s, want %s", c.after, c.found, got, c.want)
		}
	}
	r.left("n", start)
	r.returned("n")
	if got := r.awaited("n", start); got != 0 {
		t.Errorf("a node that had come back, and is gone again, keeps its port for %s", got)
	}
}

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	// defaultGrace is godwit-controller's, watchedPastGrace is for how long connections are watched past its end.
	defaultGrace     = time.Minute
	watchedPastGrace = time.Minute
	// stallAllowed is how much longer than QEMU's stop a connection may make no progress.
	stallAllowed = 500 * time.Millisecond
)

// voyagesWanted is VOYAGES, zero without.
func voyagesWanted(t *testing.T) int {
	t.Helper()
	text := os.Getenv("VOYAGES")
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("VOYAGES=%s: want a number of migrations", text)
	}
	return n
}

// tally is what became of the connections of all voyages.
type tally struct {
	connections, lost, late int
	worst                   time.Duration
}

func (s *policyVM) manyVoyages(t *testing.T) {
	t.Helper()
	n := voyagesWanted(t)
	var all tally
	for i := range n {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			v := s.handover(t, defaultGrace, func([]exchange) { time.Sleep(watchedPastGrace) })
			var here tally
			for _, c := range v.connections {
				here.add(t, c, v.stop)
			}
			t.Logf("voyage %d, %s to %s: QEMU's stop %s, %s", i+1, v.from, v.to, v.stop, here)
			all.connections, all.lost, all.late, all.worst = all.connections+here.connections, all.lost+here.lost, all.late+here.late, max(all.worst, here.worst)
		})
	}
	t.Logf("%d voyages: %s", n, all)
}

// add judges a connection: lost is what stalled for most of the time past the grace, late what stalled for longer than allowed.
func (a *tally) add(t *testing.T, c carried, stop time.Duration) {
	t.Helper()
	a.connections++
	beyond := c.Stall.Length() - c.rhythm - stop
	a.worst = max(a.worst, beyond)
	switch {
	case c.lost(watchedPastGrace * 4 / 5):
		a.lost++
		t.Errorf("%s; want it to go on", c)
	case beyond > stallAllowed:
		a.late++
		t.Errorf("%s; QEMU had stopped the VM for %s: want at most %s more", c, stop, stallAllowed)
	}
}

// String says it in a line.
func (a tally) String() string {
	return fmt.Sprintf("%d connections, %d lost, %d that stalled for more than %s beyond QEMU's stop, the longest %s beyond it", a.connections, a.lost, a.late, stallAllowed,
		a.worst.Round(time.Millisecond))
}

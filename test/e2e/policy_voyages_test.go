package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/passage"
)

const (
	// defaultGrace is godwit-controller's, watchedPastGrace is for how long connections are watched past its end.
	defaultGrace     = time.Minute
	watchedPastGrace = time.Minute
	// stallAllowed is how much longer than QEMU's stop a connection may make no progress, and than those of a VM that stays where it is make none at the same time.
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
	// worst is the longest stall beyond QEMU's stop and the still VM's, still the longest of those.
	worst, still time.Duration
}

// still is a VM that stays, with a few connections of the same kinds: where they stand it is the machine that stands.
type still struct {
	*passage.Scene
	under *exchange
}

func newStill(t *testing.T) *still {
	t.Helper()
	s := &still{Scene: newScene(t, "policy-vm-still", 0)}
	setScene(t, s.Scene)
	return s
}

// begin opens the connections.
func (s *still) begin(t *testing.T) {
	t.Helper()
	spec := voyageTraffic()
	spec.Echo.Connections, spec.Upload.Connections, spec.Download.Connections = 2, 1, 1
	x, err := s.Exchange(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	s.under = &exchange{x, spec.Echo.Interval.Duration}
}

// end returns them, and tells the longest time for which one stood.
func (s *still) end(t *testing.T) (connections []carried, longest time.Duration) {
	t.Helper()
	connections = carriedBy(t.Context(), t, []exchange{*s.under})
	for _, c := range connections {
		if longest = max(longest, c.Stall.Length()-c.rhythm); c.Broken != "" {
			t.Errorf("a VM that stays: %s", c)
		}
	}
	return connections, longest
}

// beside is for how long at most one of others stood at the same time.
func beside(c carried, others []carried) (longest time.Duration) {
	from, to := c.stood()
	for _, o := range others {
		if began, ended := o.stood(); began.Before(to) && ended.After(from) {
			longest = max(longest, o.Stall.Length()-o.rhythm)
		}
	}
	return longest
}

func (s *policyVM) manyVoyages(t *testing.T) {
	t.Helper()
	stays := newStill(t)
	err := stays.Serve(t.Context(), func(context.Context) error {
		s.voyages(t, stays)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (s *policyVM) voyages(t *testing.T, stays *still) {
	t.Helper()
	n := voyagesWanted(t)
	var all tally
	for i := range n {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			stays.begin(t)
			v := s.handover(t, defaultGrace, func([]exchange) { time.Sleep(watchedPastGrace) })
			stood, longest := stays.end(t)
			here := tally{still: longest}
			for _, c := range v.connections {
				here.add(t, c, v.stop, beside(c, stood))
			}
			t.Logf("voyage %d, %s to %s: QEMU's stop %s, %s", i+1, v.from, v.to, v.stop, here)
			all.connections, all.lost, all.late, all.worst = all.connections+here.connections, all.lost+here.lost, all.late+here.late, max(all.worst, here.worst)
			all.still = max(all.still, here.still)
		})
	}
	t.Logf("%d voyages: %s", n, all)
}

// add judges a connection, beside QEMU's stop and what the VM that stays stood: lost is what stalled for most of the time past the grace, late what stalled for longer than allowed.
func (a *tally) add(t *testing.T, c carried, stop, still time.Duration) {
	t.Helper()
	a.connections++
	beyond := c.Stall.Length() - c.rhythm - stop - still
	a.worst = max(a.worst, beyond)
	switch {
	case c.lost(watchedPastGrace * 4 / 5):
		a.lost++
		t.Errorf("%s; want it to go on", c)
	case beyond > stallAllowed:
		a.late++
		t.Errorf("%s; QEMU had stopped the VM for %s, and a VM that stays stood for %s: want at most %s more", c, stop, still, stallAllowed)
	}
}

// String says it in a line.
func (a tally) String() string {
	return fmt.Sprintf("%d connections, %d lost, %d that stalled for more than %s beyond QEMU's stop and beyond a VM that stays, the longest %s beyond both; those of the VM that stays stalled for up to %s",
		a.connections, a.lost, a.late, stallAllowed, a.worst.Round(time.Millisecond), a.still.Round(time.Millisecond))
}

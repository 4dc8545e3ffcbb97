package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// count is how many there were of something, and how many of them have lived over the VM's moves.
type count struct{ lived, all int }

// tally counts connections by what they are.
type tally map[string]count

// errDied is of those that nobody has an error of.
var errDied = errors.New("it stands still")

// add counts one, of which died says why it has not lived, if it has not.
func (t tally) add(what string, died error) {
	c := t[what]
	if c.all++; died == nil {
		c.lived++
	}
	t[what] = c
}

// connections counts a run's, and its probes' flows over UDP. One has died that is broken, or stands still to the end for as long as it is watched.
func (t tally) connections(what string, r *traffic.Result) {
	for _, p := range r.Probes {
		t.add(what+", UDP", stands(p.Gap))
	}
	for _, c := range r.Connections {
		died := stands(c.Stall)
		if c.Broken != "" {
			died = errors.New(string(c.Broken))
		}
		t.add(what, died)
	}
}

// stands says of the longest time without progress that it goes on, for so long that nothing comes any more.
func stands(g traffic.Gap) error {
	if g.Open && g.Length() > deadFor-time.Second {
		return errDied
	}
	return nil
}

// String is for logs: what has lived, of how many.
func (t tally) String() string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(t)) {
		out = append(out, fmt.Sprintf("%s %d of %d", what, t[what].lived, t[what].all))
	}
	return strings.Join(out, "; ")
}

// echoes has something echoed on connections, on so many at a time, and returns what came of each.
func (s *handingOver) echoes(conns []net.Conn, atOnce int, within time.Duration) []error {
	errs := make([]error, len(conns))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, conn := range conns {
		g.Go(func() error {
			errs[i] = echoedWithin(conn, within)
			return nil
		})
	}
	_ = g.Wait() // what failed is in errs
	return errs
}

// grew returns for each log what of it has died: nothing, if it has more than before.
func grew(before, now []int) []error {
	errs := make([]error, len(now))
	for i := range now {
		if now[i] == before[i] {
			errs[i] = errDied
		}
	}
	return errs
}

// sizes are those of logs, in bytes.
func (s *handingOver) sizes(logs []string) []int {
	s.t.Helper()
	out := make([]int, len(logs))
	for i, log := range logs {
		b, err := s.ReadFile(s.t.Context(), log)
		if err != nil {
			s.t.Fatal(err)
		}
		out[i] = len(b)
	}
	return out
}

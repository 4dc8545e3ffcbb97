package kernel

import (
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

func lived(yes bool) count {
	if yes {
		return count{1, 1}
	}
	return count{0, 1}
}

// tally counts connections by what they are.
type tally map[string]count

func (t tally) add(what string, c count) {
	t[what] = count{t[what].lived + c.lived, t[what].all + c.all}
}

// connections counts a run's, and its probes' flows over UDP. One has died that is broken, or stands still to the end for as long as it is watched.
func (t tally) connections(what string, r *traffic.Result) {
	for _, p := range r.Probes {
		t.add(what+", UDP", lived(!p.Gap.Open || p.Gap.Length() <= deadFor-time.Second))
	}
	for _, c := range r.Connections {
		t.add(what, lived(c.Broken == "" && (!c.Stall.Open || c.Stall.Length() <= deadFor-time.Second)))
	}
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

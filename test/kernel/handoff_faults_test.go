package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
)

// TestHandoffFaults: an agent that is killed while it hands over, agents that do not reach each other, and a migration that fails: no worse than without, and no entry is left.
func TestHandoffFaults(t *testing.T) {
	s := newHandingOver(t, "handoff-faults")
	s.handOver()
	t.Run("agents killed", func(t *testing.T) {
		in := s.inside(t)
		courses := in.begin()
		vmim, target := in.prepare()
		in.handed(vmim)
		in.agents("--handoff")
		in.moved(target)
		in.arrive(vmim, target)
		in.allGoOn(courses)
	})
	t.Run("aborted", func(t *testing.T) {
		in := s.inside(t)
		courses := in.begin()
		were := in.inShared(in.other(), nil) // of connections before, when the VM was there
		vmim, target := in.prepare()
		in.handed(vmim)
		zone := in.zoneOn(target.Node)
		if len(in.entriesOf(zone)) == 0 {
			t.Error("nothing was handed over")
		}
		var seen []tracked
		var at time.Time
		in.await("connections of the VM to itself on the target", func(context.Context) error {
			if seen, at = in.inShared(target.Node, were), time.Now(); len(seen) == 0 { //nolint:contextcheck // it fails the test itself
				return errors.New("the zones that ports share there have none")
			}
			return nil
		})
		if err := in.vm.Abort(t.Context(), vmim, target); err != nil {
			t.Fatal(err)
		}
		in.asked(in.vm, in.vm.Live.Node.Name, "")
		if err := target.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		source := in.zoneOn(in.vm.Live.Node)
		in.await("end of the connections on the target", func(ctx context.Context) error { // what is cloned to it until the end has seen no reply
			left, err := in.entriesIn(ctx, zone)
			known, kerr := in.entriesIn(ctx, source)
			if err := errors.Join(err, kerr); err != nil {
				return err
			}
			if i := slices.IndexFunc(left, func(e conntrack.Entry) bool { return slices.Contains(known, e) }); i >= 0 {
				return fmt.Errorf("zone %v has %v still", zone, left[i])
			}
			return nil
		})
		in.await("end of the VM's connections to itself on the target", func(context.Context) error {
			if left := in.inShared(target.Node, were); len(left) > 0 { //nolint:contextcheck // as above
				seen, at = left, time.Now()
				return fmt.Errorf("zones that ports share have %+v still", left)
			}
			return nil
		})
		for _, e := range seen {
			if time.Since(at) > time.Duration(e.Timeout)*time.Second {
				t.Errorf("%+v has ended by itself, nobody has removed it", e)
			}
		}
		in.allGoOn(courses)
	})
	t.Run("agents apart", func(t *testing.T) {
		in := s.inside(t)
		courses := in.begin()[2:3]
		for _, n := range in.Nodes[:2] {
			in.run(n.Name, "nft", "add table inet apart; add chain inet apart in { type filter hook input priority 0; }; add rule inet apart in tcp dport 9480 drop")
			t.Cleanup(func() {
				if _, err := in.In(context.WithoutCancel(t.Context()), n.Name, "nft", "delete table inet apart"); err != nil {
					t.Errorf("bring the agents together: %v", err)
				}
			})
		}
		vmim, target := in.prepare()
		start := time.Now()
		in.arrive(vmim, target)
		t.Logf("the VM has moved in %s", time.Since(start))
		in.allGoOn(courses)
	})
}

// zoneOn is the zone of the VM's port on a node.
func (s *handingOver) zoneOn(n *cluster.Node) zoneAt {
	s.t.Helper()
	zone, err := n.Zone(s.t.Context(), s.vm.Port())
	if err != nil || zone == 0 {
		s.t.Fatalf("zone %d of %s on %s: %v", zone, s.vm.Port(), n.Name, err)
	}
	return zoneAt{n.Name, zone}
}

// moved waits until the target knows of every connection of the VM's.
func (s *handingOver) moved(target *cluster.Pod) {
	s.t.Helper()
	from, to := s.zoneOn(s.vm.Live.Node), s.zoneOn(target.Node)
	s.await("connections on the target", func(ctx context.Context) error {
		there, terr := s.entriesIn(ctx, to)
		here, err := s.entriesIn(ctx, from)
		if err := errors.Join(err, terr); err != nil {
			return err
		}
		for _, e := range here {
			if e.Protocol == conntrack.TCP && e.Of(s.vm.Live.Addrs()...) && !slices.Contains(there, e) {
				return fmt.Errorf("zone %v lacks %v", to, e)
			}
		}
		return nil
	})
}

// allGoOn checks that connections go on, and ends them.
func (s *handingOver) allGoOn(courses []course) {
	s.t.Helper()
	for _, c := range courses {
		s.progress(s.clients[c.to], c.run)
		s.stop(s.clients[c.from], c.run)
	}
}

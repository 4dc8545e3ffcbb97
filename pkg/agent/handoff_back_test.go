package agent

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
)

// TestHandoffOfAVMThatComesAfterAll: a VM that was paused for so long that it seemed not to come has its connections when it comes, in the zones that OVN has given out anew; and they go if it fails then.
func TestHandoffOfAVMThatComesAfterAll(t *testing.T) {
	w, s, table := receiving(t)
	vm, other := connectionsOf(t)
	w.target(t)
	for zone, entries := range map[string][]conntrack.Entry{portName: vm[:2], hairpins: vm[1:3]} {
		if err := told(s.Handle(t.Context(), moving, message(t, zone, entries...))); err != nil {
			t.Fatal(err)
		}
	}
	aged := func(e conntrack.Entry, d time.Duration) conntrack.Entry { e.Timeout -= d; return e }
	idle := []conntrack.Entry{aged(vm[1], time.Minute), aged(vm[2], time.Minute)}
	table.set(hairpinZone, idle[0], idle[1], other)
	if err := errors.Join(told(s.Handle(t.Context(), moving, stopped)), told(s.Handle(t.Context(), moving, resumed))); err != nil {
		t.Fatal(err)
	}
	if got := table.has(portZone); len(got) > 0 || !w.isWithdrawn(t) {
		t.Errorf("the zone of a port that was taken from OVN has %v", got)
	}
	const anew = portZone + 3
	zone := func(number conntrack.Zone) {
		w.node.mu.Lock()
		defer w.node.mu.Unlock()
		if delete(w.node.zones, portName); number != 0 {
			w.node.zones[portName] = uint16(number)
		}
	}
	await := func(port, hairpin []conntrack.Entry) {
		t.Helper()
		eventually(t, "zones", func() error {
			if got := table.has(anew); !slices.Equal(got, port) {
				return fmt.Errorf("the port's has %v, want %v", got, port)
			}
			if got := table.has(hairpinZone); !slices.Equal(got, hairpin) {
				return fmt.Errorf("what ports share has %v, want %v", got, hairpin)
			}
			return nil
		})
	}
	zone(0)
	w.pods.Modify(readyPod())
	await(nil, append([]conntrack.Entry{other}, idle...))
	zone(anew)
	await(vm[:2], append([]conntrack.Entry{other}, idle...))
	if got := table.has(portZone); len(got) > 0 {
		t.Errorf("a zone that is the port's no more has %v", got)
	}
	if err := told(s.Handle(t.Context(), moving, message(t, portName, vm[3]))); err != nil {
		t.Errorf("connections of a VM that comes after all: %v", err)
	}
	table.set(hairpinZone, other, aged(idle[0], time.Minute), aged(idle[1], time.Minute))
	w.reach(v1alpha1.StageRolledBack)
	await(nil, []conntrack.Entry{other})
	if err := told(s.Handle(t.Context(), moving, message(t, portName, vm[3]))); !errors.Is(err, errSettled) {
		t.Errorf("of one that has failed: %v, want %v", err, errSettled)
	}
}

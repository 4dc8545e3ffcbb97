package agent

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// TestHandoffOfANICThatGoes: a NIC that only the source has, and whose zone comes before the others, holds them not up. What it has is left.
func TestHandoffOfANICThatGoes(t *testing.T) {
	w := newWatched(t)
	gone := string(ident.VMPort("ns", "vm", "a"))
	w.pm.Spec.Ports = append(w.pm.Spec.Ports, v1alpha1.MigratedPort{Network: "a", Name: gone, MAC: mac7().String()})
	w.source(t)
	w.pods.Add(targetPod())
	e, events := w.speaking(t)
	e.lacks = gone
	table := newFakeTable()
	w.handing(t, table)
	w.node.mu.Lock()
	w.node.zones[gone] = 7
	w.node.mu.Unlock()
	vm, _ := connectionsOf(t)
	table.set(7, vm[3], vm[1])
	table.set(portZone, vm[0])
	table.set(hairpinZone, vm[2])
	w.records.add(w.pm)
	w.reach(v1alpha1.StagePrepared)
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0]}, hairpins: {vm[2]}})
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o == nil || o.Connections == nil || o.Connections.Began == nil {
			return errors.New("not that it has begun")
		}
		return nil
	})
	events <- hypervisor.Stopped
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o.Connections.Ended == nil || o.Connections.Left != 2 {
			return fmt.Errorf("%+v, want its end and two left", o.Connections)
		}
		return nil
	})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
}

// TestHandoffBeginsWithThePort: as long as OVN has not given the port's zone out on the target nothing has begun, though zones that ports share are there.
func TestHandoffBeginsWithThePort(t *testing.T) {
	w, e, events, _ := leaving(t, func(e *ears) { e.lacks = portName })
	vm, _ := connectionsOf(t)
	eventually(t, "refusals", func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.lacked < 3 {
			return fmt.Errorf("%d", e.lacked)
		}
		return nil
	})
	if o := w.records.status(w.pm).Source; o != nil && o.Connections != nil {
		t.Errorf("%+v is told of, and the target has none of the port's connections", o.Connections)
	}
	e.mu.Lock()
	e.lacks = ""
	e.mu.Unlock()
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}})
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o == nil || o.Connections == nil || o.Connections.Began == nil {
			return errors.New("not that it has begun")
		}
		return nil
	})
	events <- hypervisor.Stopped
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
}

// Connections that are not the VM's are left out one by one: those of a NIC that goes with the move are among the others in the zones that ports share.
func TestHandoffLeavesOutAnothers(t *testing.T) {
	w, s, table := receiving(t)
	vm, other := connectionsOf(t)
	c := w.links.capture(t, w.target(t))
	for zone, told := range map[string][]conntrack.Entry{portName: {other}, hairpins: {vm[0], other, vm[1]}} {
		if r, err := s.Handle(t.Context(), moving, message(t, zone, told...)); err != nil || r.Again {
			t.Errorf("%s: %+v, %v, want that the VM's own are taken", zone, r, err)
		}
	}
	if got, want := table.has(hairpinZone), []conntrack.Entry{vm[0], vm[1]}; !slices.Equal(got, want) || len(table.has(portZone)) > 0 {
		t.Errorf("zones have %v and %v, want %v and nothing", got, table.has(portZone), want)
	}
	c.frames <- frame.Seen{At: time.Now(), RARP: true}
	c.frames <- frame.Seen{At: time.Now()}
	if got := w.records.reported(t, w.pm, sideTarget).Connections; got == nil || got.Moved != 2 || got.Refused != 2 {
		t.Errorf("reported %+v, want 2 moved and 2 refused", got)
	}
}

// TestHandoffRefusedIsWhatIsNotTaken: a connection that is refused again and again is one, and none once it is taken; so is one that the kernel takes at last. What is left becomes less too.
func TestHandoffRefusedIsWhatIsNotTaken(t *testing.T) {
	w, s, table := receiving(t)
	vm, other := connectionsOf(t)
	w.target(t)
	refuse := func(why conntrack.Reason, entries ...conntrack.Entry) {
		table.mu.Lock()
		defer table.mu.Unlock()
		table.refuse = map[uint16]conntrack.Reason{}
		for _, e := range entries {
			table.refuse[e.Orig.SrcPort] = why
		}
	}
	target := w.observer.find(keyOn(sideTarget, w.pm))
	for i, c := range []struct {
		refuses []conntrack.Entry
		zone    string
		told    []conntrack.Entry
		refused int64
	}{
		{vm[:2], portName, vm[:3], 2},
		{vm[:2], portName, vm[:3], 2},
		{vm[:1], hairpins, vm[:1], 3},
		{vm[:1], portName, vm[:3], 2},
		{nil, portName, vm[:3], 1},
		{nil, hairpins, []conntrack.Entry{vm[0], other}, 1},
		{nil, hairpins, []conntrack.Entry{vm[0], other}, 1},
	} {
		refuse(conntrack.ReasonConflict, c.refuses...)
		if err := told(s.Handle(t.Context(), moving, message(t, c.zone, c.told...))); err != nil {
			t.Fatal(err)
		}
		if got := target.connections(); got == nil || got.Refused != c.refused {
			t.Errorf("message %d: %+v, want %d refused", i, got, c.refused)
		}
	}
	if got := w.handedOff(t, handoffRefused); got != 4 {
		t.Errorf("%v are counted as refused, want each once: 4", got)
	}
}

// TestHandoffLeftBecomesLess: what is left in the end counts, and the API is told that it is nothing.
func TestHandoffLeftBecomesLess(t *testing.T) {
	w, e, events, table := leaving(t)
	vm, _ := connectionsOf(t)
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) {
		st.Source = &v1alpha1.Observation{Connections: &v1alpha1.Connections{Left: 3}}
	})
	table.set(hairpinZone)
	events <- hypervisor.Stopped
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o.Connections.Ended == nil || o.Connections.Left != 0 {
			return fmt.Errorf("%+v, want its end and nothing left", o.Connections)
		}
		return nil
	})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
}

// handedOff is the counter of what became of entries.
func (w *watched) handedOff(t *testing.T, result string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "godwit_agent_handoff_entries_total" && m.GetLabel()[0].GetValue() == result {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/peer"
)

const (
	portZone    = conntrack.Zone(5)
	hairpinZone = conntrack.Zone(6)
	hairpins    = "0c0ffee0_snat"
)

var portName = string(ident.VMPort("ns", "vm", "default"))

// fakeTable is connection tracking in memory.
type fakeTable struct {
	mu    sync.Mutex
	zones map[conntrack.Zone][]conntrack.Entry
	// refuse has why those of a source port are not taken.
	refuse map[uint16]conntrack.Reason
	fail   error
	open   int
	// asked are the zones of the last dump.
	asked []conntrack.Zone
	// hold has the next dump last until it is given up, and held says that it has begun.
	hold, held bool
}

func newFakeTable() *fakeTable { return &fakeTable{zones: map[conntrack.Zone][]conntrack.Entry{}} }

func (f *fakeTable) Dump(ctx context.Context, q conntrack.Query) (conntrack.Dumped, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold {
		f.hold, f.held = false, true
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return conntrack.Dumped{}, ctx.Err()
	}
	f.asked = q.Zones
	n, d := 0, conntrack.Dumped{Entries: map[conntrack.Zone][]conntrack.Entry{}, Left: map[conntrack.Reason]int{}}
	for _, zone := range q.Zones {
		for _, e := range f.zones[zone] {
			switch {
			case !q.Keep(e):
			case n == q.Limit:
				d.Left[conntrack.ReasonLimit]++
			default:
				n++
				d.Entries[zone] = append(d.Entries[zone], e)
			}
		}
	}
	return d, f.fail
}

func (f *fakeTable) Upsert(_ context.Context, zone conntrack.Zone, entries []conntrack.Entry) (conntrack.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := conntrack.Result{Refused: map[conntrack.Reason]int{}}
	for _, e := range entries {
		if why := f.refuse[e.Orig.SrcPort]; why != "" {
			r.Refused[why]++
			r.NotMoved = append(r.NotMoved, e)
			continue
		}
		if slices.ContainsFunc(f.zones[zone], func(h conntrack.Entry) bool { return h.Orig == e.Orig }) {
			r.Renewed++
			continue
		}
		r.Made++
		r.New = append(r.New, e)
		f.zones[zone] = append(f.zones[zone], e)
	}
	return r, f.fail
}

func (f *fakeTable) Remove(_ context.Context, zone conntrack.Zone, entries []conntrack.Entry) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.zones[zone])
	f.zones[zone] = slices.DeleteFunc(f.zones[zone], func(e conntrack.Entry) bool { return slices.Contains(entries, e) })
	return before - len(f.zones[zone]), f.fail
}

func (f *fakeTable) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	return nil
}

func (f *fakeTable) set(zone conntrack.Zone, entries ...conntrack.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.zones[zone] = entries
}

func (f *fakeTable) has(zone conntrack.Zone) []conntrack.Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.zones[zone])
}

// handing gives an observer's switchover a table of connections.
func (w *watched) handing(t *testing.T, table *fakeTable) {
	t.Helper()
	w.node.mu.Lock()
	w.node.zones = map[string]uint16{portName: uint16(portZone), "other": 9, hairpins: uint16(hairpinZone)}
	w.node.mu.Unlock()
	w.observer.switchover.handoff = &handoff{
		log: w.observer.log, inputs: w.inputs, node: w.attacher.node, entries: w.metrics.handoffEntries, limit: 5,
		open: func() (entries, error) {
			table.mu.Lock()
			defer table.mu.Unlock()
			table.open++
			return table, nil
		},
	}
	t.Cleanup(func() {
		w.stop()
		if table.open != 0 {
			t.Errorf("%d tables of connections are open still", table.open)
		}
	})
}

// connection is one of an address's, over TCP.
func connection(from netip.Addr, port uint16) conntrack.Entry {
	to := netip.MustParseAddr("192.0.2.1")
	return conntrack.Entry{
		Protocol: conntrack.TCP, Timeout: time.Hour, TCP: conntrack.TCPState{State: 3},
		Orig: conntrack.Tuple{Src: from, Dst: to, SrcPort: port, DstPort: 80}, Reply: conntrack.Tuple{Src: to, Dst: from, SrcPort: 80, DstPort: port},
	}
}

// connectionsOf are a VM's, and those of somebody else.
func connectionsOf(t *testing.T) (vm [4]conntrack.Entry, other conntrack.Entry) {
	t.Helper()
	mine := identityOf(uid, 7).IPs[0].Addr()
	for i := range vm {
		vm[i] = connection(mine, uint16(1000+i))
	}
	return vm, connection(mine.Next(), 1000)
}

// connections are those that were told, by zone.
func (e *ears) connections(t *testing.T) map[string][]conntrack.Entry {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string][]conntrack.Entry{}
	for _, m := range e.heard {
		if m.Kind != peer.Connections {
			continue
		}
		told, err := conntrack.Decode(m.Entries)
		if err != nil {
			t.Fatal(err)
		}
		out[m.Zone] = append(out[m.Zone], told...)
	}
	return out
}

func (e *ears) awaitConnections(t *testing.T, want map[string][]conntrack.Entry) {
	t.Helper()
	eventually(t, "what was told of connections", func() error {
		if d := cmp.Diff(want, e.connections(t), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

// leaving is a source whose VM has two connections, and one to itself. The target's agent may be made to hear otherwise before it is told of any.
func leaving(t *testing.T, hearing ...func(*ears)) (w *watched, e *ears, events chan hypervisor.Event, table *fakeTable) {
	t.Helper()
	w = newWatched(t)
	link := w.source(t)
	w.pods.Add(targetPod())
	e, events = w.speaking(t)
	for _, f := range hearing {
		f(e)
	}
	table = newFakeTable()
	w.handing(t, table)
	vm, other := connectionsOf(t)
	table.set(portZone, vm[0], other, vm[1])
	table.set(hairpinZone, vm[2], other)
	table.set(9, vm[3])
	w.records.add(w.pm)
	w.links.capture(t, link).frames <- frame.Seen{At: time.Now()}
	w.reach(v1alpha1.StagePrepared)
	return w, e, events, table
}

// TestHandoffTellsTheTarget: first what there is, then what is new, and when the VM was stopped the last of it. The controller learns when.
func TestHandoffTellsTheTarget(t *testing.T) {
	w, e, events, table := leaving(t)
	vm, other := connectionsOf(t)
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}})
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o == nil || o.Connections == nil || o.Connections.Began == nil || o.Connections.Ended != nil {
			return errors.New("not that it has begun")
		}
		return nil
	})
	table.set(portZone, vm[1], other, vm[3])
	events <- hypervisor.Stopped
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o.Connections.Ended == nil {
			return errors.New("not that it has ended")
		}
		return nil
	})
	table.mu.Lock()
	if want := []conntrack.Zone{portZone, hairpinZone}; !slices.Equal(table.asked, want) {
		t.Errorf("a dump was of the zones %d, want %d: one for all", table.asked, want)
	}
	table.mu.Unlock()
	if o := w.records.status(w.pm).Source; o.LastFrame != nil {
		t.Errorf("a frame at %s is told to be the last, and the VM was not heard on the target yet", o.LastFrame)
	}
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1], vm[3]}, hairpins: {vm[2]}})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	if o := w.records.status(w.pm).Source; o.LastFrame == nil {
		t.Error("the last frame is not told in the end")
	}
}

// TestHandoffLastLookWaitsForNoOther: one that goes on when the VM is stopped is given up, and what was told stays told.
func TestHandoffLastLookWaitsForNoOther(t *testing.T) {
	w, e, events, table := leaving(t)
	vm, other := connectionsOf(t)
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}})
	table.mu.Lock()
	table.hold = true
	table.mu.Unlock()
	eventually(t, "a look", func() error {
		table.mu.Lock()
		defer table.mu.Unlock()
		if !table.held {
			return errors.New("none has begun")
		}
		return nil
	})
	table.set(portZone, vm[0], other, vm[1], vm[3])
	events <- hypervisor.Stopped
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1], vm[3]}, hairpins: {vm[2]}})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
}

// TestHandoffEndsWithTheActivation where nobody tells of the VM's stop, and says how many connections are left.
func TestHandoffEndsWithTheActivation(t *testing.T) {
	w, e, _, table := leaving(t)
	vm, _ := connectionsOf(t)
	e.awaitConnections(t, map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}})
	mine := identityOf(uid, 7).IPs[0].Addr()
	table.set(portZone, vm[0], connection(mine, 1), connection(mine, 2), connection(mine, 3), connection(mine, 4), connection(mine, 5), connection(mine, 6))
	w.reach(v1alpha1.StageActivated)
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(w.pm).Source; o == nil || o.Connections == nil || o.Connections.Ended == nil || o.Connections.Left != 3 {
			return errors.New("not that it has ended, with three connections left")
		}
		return nil
	})
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
}

// A target that takes nothing, or a table that cannot be read, holds nobody up: the end is told all the same.
func TestHandoffThatFails(t *testing.T) {
	for name, fault := range map[string]func(e *ears, table *fakeTable){
		"the target refuses":    func(e *ears, _ *fakeTable) { e.mu.Lock(); e.deaf = errNoHandoff; e.mu.Unlock() },
		"the target is unknown": func(e *ears, _ *fakeTable) { e.mu.Lock(); e.fail = errors.New("not known here"); e.mu.Unlock() },
		"the kernel's fault": func(_ *ears, table *fakeTable) {
			table.mu.Lock()
			table.fail = errors.New("no answer")
			table.mu.Unlock()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, e, events, table := leaving(t)
			fault(e, table)
			events <- hypervisor.Stopped
			eventually(t, "what the controller is told", func() error {
				if o := w.records.status(w.pm).Source; o == nil || o.Connections == nil || o.Connections.Ended == nil {
					return errors.New("not that it has ended")
				}
				return nil
			})
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationFailed })
			w.idle(t)
		})
	}
}

// message has connections of a zone.
func message(t *testing.T, zone string, told ...conntrack.Entry) peer.Message {
	t.Helper()
	b, err := conntrack.Encode(told)
	if err != nil || len(b) != 1 {
		t.Fatalf("%d messages: %v", len(b), err)
	}
	return peer.Message{Kind: peer.Connections, Zone: zone, Entries: b[0]}
}

// receiving is a target that can take connections.
func receiving(t *testing.T) (*watched, *switchover, *fakeTable) {
	t.Helper()
	w := newWatched(t)
	s, table := w.listening(t), newFakeTable()
	w.handing(t, table)
	w.records.add(w.pm)
	w.watching(t)
	return w, s, table
}

func TestHandoffTakes(t *testing.T) {
	w, s, table := receiving(t)
	vm, _ := connectionsOf(t)
	if _, err := s.Handle(t.Context(), moving, message(t, portName, vm[0])); err == nil {
		t.Error("a pod without a link takes connections")
	}
	c := w.links.capture(t, w.target(t))
	for zone, told := range map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}} {
		for range 2 {
			if r, err := s.Handle(t.Context(), moving, message(t, zone, told...)); err != nil || r.Again {
				t.Errorf("%s: %+v, %v", zone, r, err)
			}
		}
	}
	table.mu.Lock()
	table.refuse = map[uint16]conntrack.Reason{vm[3].Orig.SrcPort: conntrack.ReasonTableFull}
	table.mu.Unlock()
	if r, err := s.Handle(t.Context(), moving, message(t, portName, vm[3])); err != nil || !r.Again {
		t.Errorf("a full table: %+v, %v, want that it be told again", r, err)
	}
	want := map[conntrack.Zone][]conntrack.Entry{portZone: {vm[0], vm[1]}, hairpinZone: {vm[2]}}
	if d := cmp.Diff(want, maps.Clone(table.zones), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("zones (-want +got):\n%s", d)
	}
	c.frames <- frame.Seen{At: time.Now(), RARP: true}
	c.frames <- frame.Seen{At: time.Now()}
	if got := w.records.reported(t, w.pm, sideTarget).Connections; got == nil || got.Moved != 3 || got.Refused != 1 {
		t.Errorf("reported %+v, want 3 moved and 1 refused", got)
	}
	w.reach(v1alpha1.StageCommitted)
	eventually(t, "the end", func() error {
		if _, err := s.Handle(t.Context(), moving, message(t, portName, vm[0])); !errors.Is(err, errSettled) {
			return errors.New("connections are taken when the ports are the target's alone")
		}
		return nil
	})
}

// Nobody may say anything of connections that are not the VM's, or of zones that are not.
func TestHandoffRefuses(t *testing.T) {
	w, s, table := receiving(t)
	vm, _ := connectionsOf(t)
	w.target(t)
	garbled := message(t, portName, vm[0])
	garbled.Entries = garbled.Entries[1:]
	for name, c := range map[string]struct {
		msg  peer.Message
		says string
	}{
		"another's zone":  {message(t, "other", vm[0]), "none of the migration's ports"},
		"no zone":         {message(t, "", vm[0]), "none of the migration's ports"},
		"a zone not here": {message(t, "nowhere_snat", vm[0]), "no connection tracking zone"},
		"not a message":   {garbled, "connections in version"},
		"nothing":         {peer.Message{Kind: peer.Connections, Zone: portName}, "connections in 0 bytes"},
	} {
		if _, err := s.Handle(t.Context(), moving, c.msg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want that it says %q", name, err, c.says)
		}
	}
	if len(table.zones) != 0 {
		t.Errorf("zones have %v", table.zones)
	}
	s.handoff = nil
	if _, err := s.Handle(t.Context(), moving, message(t, portName, vm[0])); !errors.Is(err, errNoHandoff) {
		t.Errorf("a node that takes none: %v", err)
	}
}

// What a VM that does not come has left in its port's zone goes, and in those that ports share what the migration brought and nobody has used since; and nothing else.
func TestHandoffIsCleaned(t *testing.T) {
	for name, fails := range map[string]func(w *watched, s *switchover) error{
		"the VM goes on": func(_ *watched, s *switchover) error { return told(s.Handle(t.Context(), moving, resumed)) },
		"rolled back":    func(w *watched, _ *switchover) error { w.reach(v1alpha1.StageRolledBack); return nil },
		"failed": func(w *watched, _ *switchover) error {
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationFailed })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, s, table := receiving(t)
			vm, other := connectionsOf(t)
			w.target(t)
			if err := told(s.Handle(t.Context(), moving, message(t, portName, vm[0], vm[1]))); err != nil {
				t.Fatal(err)
			}
			used, idle := vm[0], vm[1]
			used.Timeout, idle.Timeout = used.Timeout+time.Minute, idle.Timeout-time.Minute
			table.set(hairpinZone, vm[2])
			if err := told(s.Handle(t.Context(), moving, message(t, hairpins, vm[0], vm[1], vm[2]))); err != nil {
				t.Fatal(err)
			}
			table.set(hairpinZone, used, idle, vm[2], vm[3], other)
			table.set(portZone, vm[0], vm[1], other)
			w.node.mu.Lock()
			delete(w.node.zones, portName) // OVN is quicker
			w.node.mu.Unlock()
			if err := fails(w, s); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the zone", func() error {
				if got := table.has(portZone); !slices.Equal(got, []conntrack.Entry{other}) {
					return errors.New("it has connections of the VM's, or lacks another's")
				}
				if got, want := table.has(hairpinZone), []conntrack.Entry{used, vm[2], vm[3], other}; !slices.Equal(got, want) {
					return fmt.Errorf("what ports share has %v, want %v", got, want)
				}
				return nil
			})
			if err := told(s.Handle(t.Context(), moving, message(t, portName, vm[0]))); err == nil {
				t.Error("connections are taken of a VM that does not come")
			}
		})
	}
}

// A zone that OVN has given to somebody else is not touched.
func TestHandoffLeavesWhatIsAnothers(t *testing.T) {
	w, s, table := receiving(t)
	vm, _ := connectionsOf(t)
	w.target(t)
	if err := told(s.Handle(t.Context(), moving, message(t, portName, vm[0]))); err != nil {
		t.Fatal(err)
	}
	w.node.mu.Lock()
	w.node.zones = map[string]uint16{"another": uint16(portZone)}
	w.node.mu.Unlock()
	if err := told(s.Handle(t.Context(), moving, resumed)); err != nil {
		t.Fatal(err)
	}
	if got := table.has(portZone); len(got) != 1 {
		t.Errorf("the zone of another port has %v, want what it had", got)
	}
}

func TestConnectionsAreMerged(t *testing.T) {
	early, late := &metav1.MicroTime{Time: time.Unix(1, 0)}, &metav1.MicroTime{Time: time.Unix(2, 0)}
	for name, c := range map[string]struct{ before, now, want *v1alpha1.Connections }{
		"nothing":               {},
		"nothing before":        {nil, &v1alpha1.Connections{Began: late}, &v1alpha1.Connections{Began: late}},
		"nothing now":           {&v1alpha1.Connections{Moved: 3}, nil, &v1alpha1.Connections{Moved: 3}},
		"another agent's":       {&v1alpha1.Connections{Began: early, Ended: early, Left: 1}, &v1alpha1.Connections{Began: late}, &v1alpha1.Connections{Began: early, Ended: early, Left: 1}},
		"another's, not looked": {&v1alpha1.Connections{Began: early, Left: 1}, &v1alpha1.Connections{Ended: late}, &v1alpha1.Connections{Began: early, Ended: late, Left: 1}},
		"fewer are left":        {&v1alpha1.Connections{Began: early, Left: 3}, &v1alpha1.Connections{Began: early}, &v1alpha1.Connections{Began: early}},
		"none is refused":       {&v1alpha1.Connections{Moved: 3, Refused: 2}, &v1alpha1.Connections{Moved: 4}, &v1alpha1.Connections{Moved: 4}},
		"its end":               {&v1alpha1.Connections{Began: early}, &v1alpha1.Connections{Began: late, Ended: late}, &v1alpha1.Connections{Began: early, Ended: late}},
		"numbers":               {&v1alpha1.Connections{Moved: 3, Replaced: 1}, &v1alpha1.Connections{Moved: 2, Replaced: 2, Refused: 1}, &v1alpha1.Connections{Moved: 3, Replaced: 2, Refused: 1}},
	} {
		if d := cmp.Diff(c.want, mergeConnections(c.before, c.now)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

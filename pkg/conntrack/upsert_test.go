package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

var byAddr = cmpopts.EquateComparable(netip.Addr{})

// balanced is a connection of a VM to a load balancer, as its own node knows it.
func balanced() Entry {
	e := Entry{
		Zone: 1, Protocol: TCP, Status: SeenReply | Assured | confirmed, Timeout: time.Hour, Mark: 2, TCP: TCPState{State: 3, Scales: [2]uint8{7, 7}, Flags: [2]uint8{0x2b, 0x2b}},
		Orig: Tuple{Src: netip.MustParseAddr("10.0.0.4"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 40000, DstPort: 80},
	}
	e.Reply, _ = e.Orig.inverse(TCP)
	e.Reply.Src, e.Reply.SrcPort = netip.MustParseAddr("10.0.0.3"), 8080
	return e
}

// backwards is what another node takes the replies of a connection for.
func backwards(e Entry, zone Zone) Entry {
	e.Zone, e.Orig = zone, e.Reply
	e.Reply, _ = e.Orig.inverse(e.Protocol)
	e.Status, e.Mark, e.Timeout, e.TCP.Flags = confirmed, 0, time.Minute, [2]uint8{0x0a, 0x0a}
	return e
}

// upsert checks by itself that of what was told what is new is what was made, or has replaced something.
func upsert(t interface{ Fatal(...any) }, table *Table, zone Zone, entries ...Entry) Result {
	r, err := table.Upsert(context.Background(), zone, entries)
	if err != nil {
		t.Fatal(err)
	}
	told := map[Tuple]int{}
	for _, e := range entries {
		told[e.Orig]++
	}
	for _, e := range r.New {
		if told[e.Orig]--; told[e.Orig] < 0 || e.Zone != zone {
			t.Fatal("new, and was not told so often, or is of another zone: ", e)
		}
	}
	if len(r.New) != r.Made+r.Replaced {
		t.Fatal("of ", len(r.New), " entries it is said that they are new: ", r)
	}
	refused := 0
	for _, n := range r.Refused {
		refused += n
	}
	if len(r.NotMoved) != refused {
		t.Fatal("of ", len(r.NotMoved), " entries it is said that they were not moved: ", r)
	}
	r.New, r.NotMoved = nil, nil
	return r
}

func TestUpsert(t *testing.T) {
	right := balanced()
	want, _ := right.moved(2)
	renewed := want
	renewed.Timeout, renewed.Status, renewed.TCP.State = time.Minute, confirmed, 1
	elsewhere := backwards(right, 3)
	// Of another address, which NAT has given the VM's own.
	foreign := want
	foreign.Orig.Src = netip.MustParseAddr("10.0.0.9")
	rebalanced := want
	rebalanced.Reply.Src = netip.MustParseAddr("10.0.0.5")
	unreplied := right
	unreplied.Status = confirmed
	shifted := right
	shifted.Status |= sequenceAdjust
	strange := right
	strange.Protocol = 47
	torn := right
	torn.Reply.Src = netip.MustParseAddr("fd00::3")
	labelled := right
	labelled.Labels = Labels{1}
	withLabel, _ := labelled.moved(2)
	for name, c := range map[string]struct {
		have       []Entry
		told       Entry
		limit      uint32
		unlabelled bool
		want       []Entry
		result     Result
	}{
		"where there is none":         {told: right, want: []Entry{want}, result: Result{Made: 1}},
		"where it is":                 {have: []Entry{renewed}, told: right, want: []Entry{want}, result: Result{Renewed: 1}},
		"one that is assured there":   {have: []Entry{want}, told: unreplied, want: []Entry{want}, result: Result{Renewed: 1}},
		"in the place of its replies": {have: []Entry{backwards(right, 2)}, told: right, want: []Entry{want}, result: Result{Replaced: 1}},
		"in the place of both directions": {
			have: []Entry{backwards(right, 2), plain(right, 2)}, told: right, want: []Entry{want}, result: Result{Replaced: 1},
		},
		"in the place of another connection": {
			have: []Entry{foreign}, told: right, want: []Entry{foreign}, result: Result{Refused: map[Reason]int{ReasonConflict: 1}},
		},
		"in the place of the same, balanced elsewhere": {have: []Entry{rebalanced}, told: right, want: []Entry{want}, result: Result{Replaced: 1}},
		"others stay":            {have: []Entry{elsewhere}, told: right, want: []Entry{want}, result: Result{Made: 1}},
		"with labels":            {told: labelled, want: []Entry{withLabel}, result: Result{Made: 1}},
		"with other labels":      {have: []Entry{want}, told: labelled, want: []Entry{withLabel}, result: Result{Renewed: 1}},
		"labels that are gone":   {have: []Entry{withLabel}, told: right, want: []Entry{want}, result: Result{Renewed: 1}},
		"without use of labels":  {told: labelled, unlabelled: true, want: []Entry{want}, result: Result{Made: 1, Unlabelled: 1}},
		"shifted by a helper":    {told: shifted, result: Result{Refused: map[Reason]int{ReasonSequences: 1}}},
		"GRE":                    {told: strange, result: Result{Refused: map[Reason]int{ReasonProtocol: 1}}},
		"of two families":        {told: torn, result: Result{Refused: map[Reason]int{ReasonMalformed: 1}}},
		"into a table with room": {told: right, limit: 2, want: []Entry{want}, result: Result{Made: 1}},
		"into a table that is full, in the place of its replies": {have: []Entry{backwards(right, 2)}, told: right, limit: 1, want: []Entry{want}, result: Result{Replaced: 1}},
		"into a table that is full, where it is":                 {have: []Entry{renewed}, told: right, limit: 1, want: []Entry{want}, result: Result{Renewed: 1}},
		"into a table that fills":                                {have: []Entry{elsewhere}, told: right, limit: 2, result: Result{Refused: map[Reason]int{ReasonTableFull: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			f, table := newFake()
			f.limit, f.unlabelled = c.limit, c.unlabelled
			for _, e := range c.have {
				f.add(e)
			}
			got := upsert(t, table, 2, c.told)
			if d := cmp.Diff(c.result, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.want, f.zone(2), byAddr, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("entries of zone 2 (-want +got):\n%s", d)
			}
			if slices.Contains(c.have, elsewhere) && !slices.Contains(f.zone(3), elsewhere) {
				t.Errorf("zone 3 has %v, want what it had", f.zone(3))
			}
		})
	}
}

// plain is a connection without its NAT.
func plain(e Entry, zone Zone) Entry {
	e.Zone = zone
	e.Reply, _ = e.Orig.inverse(e.Protocol)
	return e
}

// TestUpsertAgainstClones: wrong entries come back while they are replaced.
func TestUpsertAgainstClones(t *testing.T) {
	right := balanced()
	wrong := backwards(right, 2)
	for name, c := range map[string]struct {
		times  int
		result Result
	}{
		"once":   {1, Result{Replaced: 1}},
		"always": {100, Result{Refused: map[Reason]int{ReasonConflict: 1}}},
		"never":  {0, Result{Replaced: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			f, table := newFake()
			f.add(wrong)
			f.before = func(command uint8) {
				if command == nl.IPCTNL_MSG_CT_NEW && f.asked[nl.IPCTNL_MSG_CT_DELETE] > 0 && f.asked[nl.IPCTNL_MSG_CT_DELETE] <= c.times && len(f.zone(2)) == 0 {
					f.add(wrong)
				}
			}
			if d := cmp.Diff(c.result, upsert(t, table, 2, right), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
		})
	}
	t.Run("it goes meanwhile", func(t *testing.T) {
		f, table := newFake()
		there, _ := right.moved(2)
		f.add(there)
		f.before = func(command uint8) {
			if f.asked[nl.IPCTNL_MSG_CT_GET] == 2 && command == nl.IPCTNL_MSG_CT_NEW && f.asked[command] == 1 {
				f.entries = nil
			}
		}
		if got := upsert(t, table, 2, right); got.Made != 1 {
			t.Errorf("%+v, want one made", got)
		}
	})
}

// TestUpsertRefusedByTheKernel: one entry that the kernel does not take keeps no other back.
func TestUpsertRefusedByTheKernel(t *testing.T) {
	f, table := newFake()
	refusing := &refuser{fake: f, port: 40001}
	table.kernel = refusing
	one, two := balanced(), balanced()
	two.Orig.SrcPort, two.Reply.DstPort = 40001, 40001
	got := upsert(t, table, 2, two, one)
	if got.Made != 1 || got.Refused[ReasonKernel] != 1 || !errors.Is(got.Why, unix.ENOSPC) {
		t.Errorf("%+v, want one made and one refused because of %v", got, unix.ENOSPC)
	}
}

// refuser takes no entry of a port.
type refuser struct {
	*fake
	port uint16
}

func (k *refuser) do(ctx context.Context, requests []request) ([]answer, error) {
	out, err := k.fake.do(ctx, requests)
	for i, r := range requests {
		if a, err := read(r); err == nil && r.command == nl.IPCTNL_MSG_CT_NEW && a.Orig.SrcPort == k.port {
			out[i].err = unix.ENOSPC
		}
	}
	return out, err
}

// TestHandOffProperty: what a zone has, dumped, sent and put into another, is there but for what cannot be moved, whatever was there before; other zones stay as they are; a second time changes
// nothing.
func TestHandOffProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		source, from := newFake()
		put(source, rapid.SliceOfN(rapid.Custom(drawEntry), 0, 20).Draw(t, "source"))
		target, to := newFake()
		put(target, rapid.SliceOfN(rapid.Custom(drawEntry), 0, 20).Draw(t, "target"))
		others, was := target.zone(1), target.zone(2)
		dumped, err := from.Dump(context.Background(), Query{Zones: []Zone{1}, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		var told []Entry
		for _, m := range encoded(t, dumped.Entries[1]) {
			some, err := Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, some...)
		}
		got := upsert(t, to, 2, told...)
		if n := len(told); n != len(source.zone(1)) || got.Made+got.Renewed+got.Replaced+got.Refused[ReasonConflict] != n {
			t.Fatalf("%+v of %d entries", got, n)
		}
		have := target.zone(2)
		for _, e := range source.zone(1) {
			want, _ := e.moved(2)
			at := slices.IndexFunc(have, func(h Entry) bool { return sameButStatus(h, want) })
			if at >= 0 && have[at].Status&want.Status != want.Status { // what was set there stays
				t.Fatalf("%v has lost some of the status of %v", have[at], want)
			}
			if at < 0 && !slices.ContainsFunc(was, want.inTheWayOf) {
				t.Fatalf("zone 2 lacks %v, it has %v", want, have)
			}
		}
		if d := cmp.Diff(others, target.zone(1), byAddr); d != "" {
			t.Fatalf("zone 1 has changed (-was +is):\n%s", d)
		}
		again := upsert(t, to, 2, told...)
		if len(got.Refused) == 0 && (again.Renewed != len(told) || !slices.Equal(have, target.zone(2))) {
			t.Fatalf("a second time: %+v", again)
		}
	})
}

// inTheWayOf: an entry that was there is of another connection with NAT, and has one of this one's tuples.
func (e Entry) inTheWayOf(was Entry) bool {
	tuples := []Tuple{e.Orig, e.Reply}
	return was.Protocol == e.Protocol && was.natted() && was.Orig != e.Orig && (slices.Contains(tuples, was.Orig) || slices.Contains(tuples, was.Reply))
}

func sameButStatus(a, b Entry) bool {
	a.Status, b.Status = 0, 0
	return a == b
}

// put adds entries that can be in a table together.
func put(f *fake, entries []Entry) {
	for _, e := range entries {
		if f.find(e.Zone, e.Protocol, e.Orig) < 0 && f.find(e.Zone, e.Protocol, e.Reply) < 0 {
			f.add(e)
		}
	}
}

// TestDump: of a kernel that tells of all zones whatever it is asked for, and of one that does not, one gets the same; the first is asked once.
func TestDump(t *testing.T) {
	want := balanced()
	second, third := want, want
	second.Orig.SrcPort, second.Reply.DstPort = 1, 1
	third.Zone = 3
	gre := want
	gre.Protocol = 47
	first := func(e Entry) bool { return e.Orig.SrcPort == 1 }
	one := []Zone{1}
	for name, c := range map[string]struct {
		query Query
		want  []Entry
		left  map[Reason]int
		// asked is how often a kernel is that filters.
		asked int
	}{
		"all":              {Query{Zones: one, Limit: 10}, []Entry{want, second}, map[Reason]int{ReasonProtocol: 1}, 1},
		"limited":          {Query{Zones: one, Limit: 1}, []Entry{want}, map[Reason]int{ReasonProtocol: 1, ReasonLimit: 1}, 1},
		"chosen":           {Query{Zones: one, Limit: 1, Keep: first}, []Entry{second}, nil, 1},
		"nobody's":         {Query{Zones: []Zone{7}, Limit: 10}, nil, nil, 1},
		"no zone":          {Query{Limit: 10}, nil, nil, 0},
		"two":              {Query{Zones: []Zone{1, 3}, Limit: 10}, []Entry{want, second, third}, map[Reason]int{ReasonProtocol: 1}, 2},
		"two, and none":    {Query{Zones: []Zone{7, 1, 3}, Limit: 10}, []Entry{want, second, third}, map[Reason]int{ReasonProtocol: 1}, 3},
		"two, limited":     {Query{Zones: []Zone{1, 3}, Limit: 2}, []Entry{want, second}, map[Reason]int{ReasonProtocol: 1, ReasonLimit: 1}, 2},
		"the first, first": {Query{Zones: []Zone{3, 1}, Limit: 1}, []Entry{third}, map[Reason]int{ReasonProtocol: 1, ReasonLimit: 2}, 2},
	} {
		for _, filters := range []bool{false, true} {
			f, table := newFake()
			f.filters = filters
			f.add(want)
			f.add(second)
			f.add(backwards(want, 2))
			f.add(third)
			f.dumped = [][]byte{asKernel(found{Entry: gre})}
			got, err := table.Dump(t.Context(), c.query)
			if err != nil {
				t.Fatal(err)
			}
			zones := map[Zone][]Entry{}
			for _, e := range c.want {
				zones[e.Zone] = append(zones[e.Zone], e)
			}
			if d := cmp.Diff(Dumped{Entries: zones, Left: c.left}, got, byAddr, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s, of a kernel that filters: %v (-want +got):\n%s", name, filters, d)
			}
			if asked := c.asked; f.dumps != min(asked, map[bool]int{true: asked, false: 1}[filters]) {
				t.Errorf("%s, of a kernel that filters: %v: it was asked %d times", name, filters, f.dumps)
			}
		}
	}
}

// TestDumpOfOddEntries: one that cannot be moved, whatever it is like, is counted, and holds no other up. Protocol 0 is what anybody may send.
func TestDumpOfOddEntries(t *testing.T) {
	f, table := newFake()
	want := balanced()
	f.add(want)
	zero, torn := want, want
	zero.Protocol, torn.TCP.State = 0, 200
	f.dumped = [][]byte{asKernel(found{Entry: zero}), asKernel(found{Entry: torn}), asKernel(found{Entry: backwards(torn, 2)})}
	got, err := table.Dump(t.Context(), Query{Zones: []Zone{1}, Limit: 10})
	if err != nil || !slices.Equal(got.Entries[1], []Entry{want}) || got.Left[ReasonProtocol] != 1 || got.Left[ReasonMalformed] != 1 {
		t.Errorf("%+v, %v, want the one entry, and one left of protocol 0 and one that is malformed", got, err)
	}
	if got, err := table.Dump(t.Context(), Query{Zones: []Zone{1}, Limit: 10, Keep: func(Entry) bool { return false }}); err != nil || len(got.Left) > 0 {
		t.Errorf("%+v, %v, want nothing of what nobody asked for", got, err)
	}
}

// TestDumpLearns: that a kernel tells of all zones does not show while there is but one. It is learnt, and asked no more for what it would tell again.
func TestDumpLearns(t *testing.T) {
	f, table := newFake()
	want := balanced()
	f.add(want)
	for i, dumps := range []int{3, 1, 1} { // the third of the first time is that for all
		f.dumps = 0
		got, err := table.Dump(t.Context(), Query{Zones: []Zone{1, 2, 3}, Limit: 10})
		if err != nil || len(got.Entries) != 1 || len(got.Entries[1]) != 1 || f.dumps != dumps {
			t.Errorf("time %d: %v after %d dumps, %v, want the one entry after %d", i+1, got, f.dumps, err, dumps)
		}
	}
}

func TestDumpOfNonsense(t *testing.T) {
	f, table := newFake()
	f.dumped = [][]byte{{1, 2}}
	if _, err := table.Dump(t.Context(), Query{Zones: []Zone{1}}); !errors.Is(err, errMessage) {
		t.Errorf("error %v, want %v", err, errMessage)
	}
}

func TestZoneOfTheHost(t *testing.T) {
	f, table := newFake()
	_, dumpErr := table.Dump(t.Context(), Query{Zones: []Zone{0}, Limit: 1})
	_, upsertErr := table.Upsert(t.Context(), 0, []Entry{balanced()})
	_, removeErr := table.Remove(t.Context(), 0, []Entry{balanced()})
	for what, err := range map[string]error{"dump": dumpErr, "upsert": upsertErr, "remove": removeErr} {
		if !errors.Is(err, errZone) {
			t.Errorf("%s of zone 0: %v, want %v", what, err, errZone)
		}
	}
	if len(f.asked) > 0 {
		t.Errorf("the kernel was asked: %v", f.asked)
	}
}

func TestRemove(t *testing.T) {
	f, table := newFake()
	there, _ := balanced().moved(2)
	f.add(there)
	other := backwards(there, 2)
	other.Orig.DstPort, other.Reply.SrcPort = 9, 9
	f.add(other)
	f.add(backwards(there, 3))
	gone := balanced()
	gone.Orig.SrcPort, gone.Reply.DstPort = 1, 1
	n, err := table.Remove(t.Context(), 2, []Entry{gone, balanced(), backwards(other, 5)})
	if err != nil || n != 1 {
		t.Errorf("%d removed, %v, want 1", n, err)
	}
	if got := f.zone(2); len(got) != 1 || got[0] != other || len(f.zone(3)) != 1 {
		t.Errorf("zone 2 has %v, zone 3 has %v", got, f.zone(3))
	}
}

func TestOf(t *testing.T) {
	e := balanced()
	for addr, want := range map[string]bool{"10.0.0.4": true, "10.96.0.10": true, "10.0.0.3": true, "10.0.0.5": false, "fd00::4": false} {
		if got := e.Of(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(addr)); got != want {
			t.Errorf("of %s: %v, want %v", addr, got, want)
		}
	}
}

// TestMovedOffloaded: the kernel tells neither state nor timeout of what hardware forwards.
func TestMovedOffloaded(t *testing.T) {
	e := balanced()
	e.Status |= offload | hwOffload
	e.Timeout, e.TCP = 0, TCPState{}
	got, reason := e.moved(2)
	if reason != "" || got.Timeout != offloadedTimeout || got.TCP.State != nl.TCP_CONNTRACK_ESTABLISHED || got.Status != SeenReply|Assured|confirmed {
		t.Errorf("%v, %q", got, reason)
	}
}

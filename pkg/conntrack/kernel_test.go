package conntrack

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// open is the table of a new network namespace of this machine's kernel.
func open(t *testing.T) *Table {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	var table *Table
	if err := ns.Do(func() (err error) { table, err = Open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

// kinds are connections of each protocol and family, without NAT, with NAT of either side and of both.
func kinds() []Entry {
	var out []Entry
	port := uint16(40000)
	for _, f := range families {
		for _, p := range []Protocol{TCP, UDP, SCTP, f.icmp} {
			for nat := range 4 {
				port++
				e := Entry{Protocol: p, Status: SeenReply | Assured | confirmed, Timeout: time.Hour, Mark: uint32(port), Orig: Tuple{Src: f.addr(1), Dst: f.addr(2), SrcPort: port, DstPort: 80}}
				switch p {
				case TCP:
					e.TCP = TCPState{State: 3, Scales: [2]uint8{7, 9}, Flags: [2]uint8{0x2b, 0x2b}}
				case SCTP:
					e.SCTP = SCTPState{State: 4, Tags: [2]uint32{1, 2}}
				case f.icmp:
					e.Orig = Tuple{Src: f.addr(1), Dst: f.addr(2), ID: port, Type: f.types[0]}
				}
				e.Reply, _ = e.Orig.inverse(p)
				if nat&1 != 0 {
					e.Reply.Src = f.addr(3)
					if !p.icmp() {
						e.Reply.SrcPort = 8080
					}
				}
				if nat&2 != 0 {
					e.Reply.Dst = f.addr(4)
					if p.icmp() {
						e.Reply.ID += 1000
					} else {
						e.Reply.DstPort += 1000
					}
				}
				out = append(out, e)
			}
		}
	}
	return out
}

// in is a zone's entries as they are compared: sorted, without what time changes, and NAT as the kernel has it in its status.
func in(t *testing.T, table *Table, zone Zone) []Entry {
	t.Helper()
	d, err := table.Dump(t.Context(), Query{Zones: []Zone{zone}, Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	entries := d.Entries[zone]
	for i := range entries {
		e := &entries[i]
		const natBits, natDone = 0x30, 0x180
		if natted := e.Status&natBits != 0; natted != e.natted() {
			t.Errorf("the kernel's status has NAT: %v, its tuples: %v: %v", natted, e.natted(), e)
		}
		e.Status &^= natBits | natDone
		e.Timeout = e.Timeout.Round(time.Minute)
	}
	return sorted(entries)
}

func sorted(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.String(), b.String()) })
	return entries
}

func wanted(t *testing.T, entries []Entry, zone Zone) []Entry {
	t.Helper()
	var out []Entry
	for _, e := range entries {
		m, reason := e.moved(zone)
		if reason != "" {
			t.Fatalf("%s: %v", reason, e)
		}
		out = append(out, m)
	}
	return sorted(out)
}

// TestKernelMoves puts entries of all kinds into a zone, moves them to another network namespace's, over wrong ones, and changes and removes them there; what else is there stays.
func TestKernelMoves(t *testing.T) {
	from, to := open(t), open(t)
	all := kinds()
	if r := upsert(t, from, 7, all...); r.Made != len(all) || len(r.Refused) > 0 {
		t.Fatalf("%+v of %d entries", r, len(all))
	}
	if d := cmp.Diff(wanted(t, all, 7), in(t, from, 7), byAddr); d != "" {
		t.Errorf("source (-want +got):\n%s", d)
	}
	var wrong []Entry
	for i, e := range all {
		if w := backwards(e, 0); i%2 == 0 {
			wrong = append(wrong, w)
		}
	}
	for _, zone := range []Zone{9, 10} {
		if r := upsert(t, to, zone, wrong...); r.Made != len(wrong) {
			t.Fatalf("%+v of %d wrong entries", r, len(wrong))
		}
	}
	others := ids(t, to, 10)
	dumped, err := from.Dump(t.Context(), Query{Zones: []Zone{7}, Limit: len(all)})
	if err != nil || len(dumped.Left) > 0 {
		t.Fatal(err, dumped.Left)
	}
	if r := upsert(t, to, 9, dumped.Entries[7]...); r.Replaced != len(wrong) || r.Made != len(all)-len(wrong) {
		t.Errorf("%+v, want %d replaced and the rest of %d made", r, len(wrong), len(all))
	}
	if d := cmp.Diff(wanted(t, all, 9), in(t, to, 9), byAddr); d != "" {
		t.Errorf("target (-want +got):\n%s", d)
	}
	for i := range all {
		all[i].Mark++
		all[i].Timeout /= 2
	}
	if r := upsert(t, to, 9, all...); r.Renewed != len(all) {
		t.Errorf("%+v, want %d renewed", r, len(all))
	}
	if d := cmp.Diff(wanted(t, all, 9), in(t, to, 9), byAddr); d != "" {
		t.Errorf("target, renewed (-want +got):\n%s", d)
	}
	if n, err := to.Remove(t.Context(), 9, append(all[:3:3], wrong...)); err != nil || n != 3 {
		t.Errorf("%d removed, %v, want 3", n, err)
	}
	if d := cmp.Diff(wanted(t, all[3:], 9), in(t, to, 9), byAddr); d != "" {
		t.Errorf("target, without three (-want +got):\n%s", d)
	}
	if d := cmp.Diff(others, ids(t, to, 10)); d != "" {
		t.Errorf("another zone of the target's has changed (-was +is):\n%s", d)
	}
}

// ids are the entries of a zone with their IDs, by which one that was made again would be another.
func ids(t *testing.T, table *Table, zone Zone) []string {
	t.Helper()
	var out []string
	err := table.kernel.dump(t.Context(), dumpZone(zone), func(m []byte) error {
		f, err := parse(m)
		if f.Zone == zone {
			f.Timeout = 0
			out = append(out, fmt.Sprint(f.id, f.Entry))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestKernelLabels: nothing uses labels in a new network namespace, so that the kernel leaves them out.
func TestKernelLabels(t *testing.T) {
	table := open(t)
	e := balanced()
	e.Labels = Labels{1}
	other := balanced()
	other.Orig.SrcPort, other.Reply.DstPort = 1, 1
	if r := upsert(t, table, 7, e, other); r.Made != 2 || r.Unlabelled != 1 {
		t.Errorf("%+v, want two made, one of them without its labels", r)
	}
}

// TestKernelMany: more than a socket's buffer holds of answers, and more than one answer of a dump. ENTRIES=50000 for so many.
func TestKernelMany(t *testing.T) {
	table := open(t)
	many := 10_000
	if text, ok := os.LookupEnv("ENTRIES"); ok {
		var err error
		if many, err = strconv.Atoi(text); err != nil || many < 1 || many > math.MaxUint16 {
			t.Fatalf("ENTRIES=%q: want a number of ports", text)
		}
	}
	entries := make([]Entry, many)
	for i := range entries {
		entries[i] = balanced()
		entries[i].Orig.SrcPort, entries[i].Reply.DstPort = uint16(i+1), uint16(i+1)
	}
	start := time.Now()
	if r := upsert(t, table, 7, entries...); r.Made != many {
		t.Errorf("%+v, want %d made", r, many)
	}
	made := time.Now()
	if r := upsert(t, table, 7, entries...); r.Renewed != many {
		t.Errorf("%+v, want %d renewed", r, many)
	}
	renewed := time.Now()
	d, err := table.Dump(t.Context(), Query{Zones: []Zone{7}, Limit: many - 1})
	if err != nil || len(d.Entries[7]) != many-1 || d.Left[ReasonLimit] != 1 {
		t.Errorf("%d entries and %v left, %v, want %d and 1 beyond the limit", len(d.Entries[7]), d.Left, err, many-1)
	}
	t.Logf("%d made in %s, renewed in %s, dumped in %s", many, made.Sub(start), renewed.Sub(made), time.Since(renewed))
	telling(t, d.Entries[7])
	size, err := table.Size(t.Context())
	if err != nil || size.Entries != many || size.Limit < many {
		t.Errorf("size %+v, %v, want %d entries of a higher limit", size, err, many)
	}
	// A zone without entries: since Linux 6.8 the kernel tells of no other.
	told := 0
	if err := table.kernel.dump(t.Context(), dumpZone(8), func([]byte) error { told++; return nil }); err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{true: 0, false: many}[filtersZones(t)]; told != want {
		t.Errorf("the kernel tells of %d entries of other zones, want %d", told, want)
	}
}

// telling logs what it takes to tell a target of entries, and to look again when nothing has changed.
func telling(t *testing.T, entries []Entry) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start, passes := time.Now(), &Passes{}
	due := passes.Due(entries, start)
	messages, err := Encode(due)
	encoded := time.Now()
	if err != nil || len(due) != len(entries) {
		t.Fatalf("%d of %d are due: %v", len(due), len(entries), err)
	}
	decoded := 0
	for _, m := range messages {
		some, err := Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		decoded += len(some)
	}
	read := time.Now()
	if again := passes.Due(entries, start); len(again) > 0 || decoded != len(entries) {
		t.Errorf("%d of %d were read, and %d are due again", decoded, len(entries), len(again))
	}
	runtime.ReadMemStats(&after)
	t.Logf("%d messages made in %s, read in %s; looked again in %s; %d MiB allocated in all", len(messages), encoded.Sub(start), read.Sub(encoded), time.Since(read), (after.TotalAlloc-before.TotalAlloc)>>20)
}

// TestKernelOddProtocols: the kernel tracks whatever protocol a packet says that it has, 0 too. Such entries are counted, and the rest is told.
func TestKernelOddProtocols(t *testing.T) {
	table := open(t)
	good := balanced()
	if r := upsert(t, table, 7, good); r.Made != 1 {
		t.Fatalf("%+v, want 1 made", r)
	}
	for _, p := range []Protocol{0, 50, 253} {
		odd := Entry{Zone: 7, Protocol: p, Status: confirmed, Timeout: time.Hour, Orig: Tuple{Src: good.Orig.Src, Dst: good.Orig.Dst}}
		odd.Reply, _ = odd.Orig.inverse(p)
		answers, err := table.kernel.do(t.Context(), []request{create(odd)})
		if err != nil || answers[0].err != nil {
			t.Fatalf("protocol %d: %v, %v", p, err, answers)
		}
	}
	d, err := table.Dump(t.Context(), Query{Zones: []Zone{7}, Limit: 10})
	if err != nil || len(d.Entries[7]) != 1 || d.Left[ReasonProtocol] != 3 {
		t.Errorf("%+v, %v, want the one entry, and three of other protocols counted", d, err)
	}
}

// TestKernelDumpsOnce: a kernel that tells of all zones whatever it is asked for is asked once for some of them. What they have is the same either way.
func TestKernelDumpsOnce(t *testing.T) {
	table := open(t)
	for _, zone := range []Zone{7, 9, 10} {
		upsert(t, table, zone, kinds()...)
	}
	counted := &counting{kernel: table.kernel}
	table.kernel = counted
	d, err := table.Dump(t.Context(), Query{Zones: []Zone{7, 8, 9}, Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{true: 3, false: 1}[filtersZones(t)]; counted.dumps != want {
		t.Errorf("%d dumps of three zones, want %d", counted.dumps, want)
	}
	if len(d.Entries[7]) != len(kinds()) || len(d.Entries[9]) != len(kinds()) || len(d.Entries) != 2 {
		t.Errorf("of the zones 7 and 9, and of nobody else, want %d entries each: %v", len(kinds()), d.Entries)
	}
}

// counting counts dumps.
type counting struct {
	kernel
	dumps int
}

func (c *counting) dump(ctx context.Context, r request, see func([]byte) error) error {
	c.dumps++
	return c.kernel.dump(ctx, r, see)
}

// filtersZones: this machine's kernel is Linux 6.8 or newer.
func filtersZones(t *testing.T) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 8
}

// A dump that is given up leaves the rest of its answer in the socket: the table says so, and answers nothing with it.
func TestKernelDumpGivenUp(t *testing.T) {
	table := open(t)
	a, b := balanced(), balanced()
	b.Orig.SrcPort, b.Reply.DstPort = b.Orig.SrcPort+1, b.Reply.DstPort+1
	if r := upsert(t, table, 7, a, b); r.Made != 2 {
		t.Fatalf("%+v, want 2 made", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	q := Query{Zones: []Zone{7}, Limit: 2, Keep: func(Entry) bool { seen++; cancel(); return true }}
	if _, err := table.Dump(ctx, q); !errors.Is(err, context.Canceled) || seen != 1 {
		t.Errorf("%v after %d entries, want %v after one", err, seen, context.Canceled)
	}
	if d, err := table.Dump(t.Context(), Query{Zones: []Zone{7}, Limit: 2}); err == nil {
		t.Errorf("a dump after that has %d entries, want an error", d.count())
	}
}

func TestKernelClosed(t *testing.T) {
	table := open(t)
	for range 2 {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := table.Dump(t.Context(), Query{Zones: []Zone{1}, Limit: 1}); !errors.Is(err, errClosed) {
		t.Errorf("dump of a closed table: %v, want %v", err, errClosed)
	}
}

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Table is the connection tracking of one network namespace. Its methods are safe for concurrent use. Once the kernel has not answered, or not as it should, every call fails:
// open another.
type Table struct {
	kernel kernel
	close  func() error
	// unfiltered: the kernel was seen to tell of other zones than the one that it was asked for.
	unfiltered atomic.Bool
}

// Open opens the table of the calling thread's network namespace; the Table may be used from any thread, and must be closed. It needs CAP_NET_ADMIN.
func Open() (*Table, error) {
	s, err := newSocket()
	if err != nil {
		return nil, err
	}
	return &Table{kernel: s, close: s.close}, nil
}

// Close gives the table up. Further calls fail, but for Close.
func (t *Table) Close() error { return t.close() }

// Query says what of some zones Dump returns.
type Query struct {
	// Zones of which none may be 0. Where Limit is too little for all of them, the earlier ones' entries go before.
	Zones []Zone
	// Limit of the entries that are returned, which is what bounds the memory; 0: none are.
	Limit int
	// Keep chooses entries, before they are counted for anything; nil takes all. Of zones that ports share: Entry.Of.
	Keep func(Entry) bool
}

// Dumped is what zones had.
type Dumped struct {
	Entries map[Zone][]Entry
	// Left says how many there are besides, and why they are not among Entries: ReasonProtocol, ReasonMalformed, ReasonLimit.
	Left map[Reason]int
}

// Dump returns the entries of zones. It is no snapshot: entries that come meanwhile may be there or not. Before Linux 6.8 the kernel tells of all zones whatever it is asked, and those of others
// are passed over while they are read, which takes as long as the whole table does; so it is asked once for all zones there. A table of which a dump was
// ended by ctx is of no use any more.
func (t *Table) Dump(ctx context.Context, q Query) (Dumped, error) {
	if slices.Contains(q.Zones, 0) {
		return Dumped{}, errZone
	}
	out := Dumped{Entries: map[Zone][]Entry{}, Left: map[Reason]int{}}
	for i, zone := range q.Zones {
		d := dumping{Query: q, room: q.Limit - out.count(), Dumped: Dumped{Entries: map[Zone][]Entry{}, Left: map[Reason]int{}}}
		others := false
		err := t.kernel.dump(ctx, dumpZone(zone), func(message []byte) error {
			z, err := zoneOf(message)
			others = others || z != zone
			if err != nil || !slices.Contains(q.Zones, z) {
				return err
			}
			return d.take(message)
		})
		switch {
		case err != nil:
			return Dumped{}, fmt.Errorf("dump connection tracking zones %d (the kernel needs the module nf_conntrack_netlink): %w", q.Zones, err)
		case others && i > 0: // what the first had was all there was: it did not show
			t.unfiltered.Store(true)
			return t.Dump(ctx, q)
		case others:
			t.unfiltered.Store(true)
		}
		maps.Copy(out.Entries, d.Entries)
		for why, n := range d.Left {
			out.Left[why] += n
		}
		if t.unfiltered.Load() {
			break
		}
	}
	return out, nil
}

func (d Dumped) count() (n int) {
	for _, entries := range d.Entries {
		n += len(entries)
	}
	return n
}

// dumping is what one answer of the kernel's has of the zones so far.
type dumping struct {
	Query
	Dumped
	// room is for how many entries more.
	room int
}

func (d *dumping) take(message []byte) error {
	f, err := parse(message)
	var why Reason
	switch {
	case errors.Is(err, errProtocol):
		why = ReasonProtocol
	case errors.Is(err, errEntry):
		why = ReasonMalformed
	case err != nil:
		return err
	}
	switch {
	case d.Keep != nil && f.Orig.Src.IsValid() && !d.Keep(f.Entry):
	case why != "": // whatever one entry is like, the others are told
		d.Left[why]++
	case d.room > 0 || d.yield(f.Zone):
		d.room--
		d.Entries[f.Zone] = append(d.Entries[f.Zone], f.Entry)
	default:
		d.Left[ReasonLimit]++
	}
	return nil
}

// yield gives up an entry of a zone that comes after another, if there is one.
func (d *dumping) yield(to Zone) bool {
	for _, zone := range slices.Backward(d.Zones) {
		if zone == to {
			return false
		}
		if n := len(d.Entries[zone]); n > 0 {
			if d.Entries[zone] = d.Entries[zone][:n-1]; n == 1 {
				delete(d.Entries, zone)
			}
			d.Left[ReasonLimit]++
			d.room++
			return true
		}
	}
	return false
}

// Size is how full the table is, over all zones.
type Size struct {
	Entries int
	// Limit is 0 if there is none, or if the kernel does not tell.
	Limit int
}

// Attributes and number of the request (linux/netfilter/nfnetlink_conntrack.h: ctattr_stats_global, IPCTNL_MSG_CT_GET_STATS).
const (
	msgGetStats      = 5
	ctaGlobalEntries = 1
	ctaGlobalLimit   = 2
)

// Size asks how full the table is.
func (t *Table) Size(ctx context.Context) (Size, error) {
	answers, err := t.kernel.do(ctx, []request{{command: msgGetStats, flags: unix.NLM_F_ACK, family: unix.AF_UNSPEC}})
	if err == nil {
		err = answers[0].err
	}
	var entries, limit uint32
	if err == nil {
		err = entryAttributes(answers[0].message, func(kind uint16, value []byte) error {
			switch kind {
			case ctaGlobalEntries:
				return number(value, &entries)
			case ctaGlobalLimit:
				return number(value, &limit)
			}
			return nil
		})
	}
	if err != nil {
		return Size{}, fmt.Errorf("read how full the connection tracking table is: %w", err)
	}
	return Size{Entries: int(entries), Limit: int(limit)}, nil
}

// lookUp returns the entries that have one of each entry's tuples in either direction, none or one or two for each.
func (t *Table) lookUp(ctx context.Context, entries []Entry) ([][]found, error) {
	requests := make([]request, 0, 2*len(entries))
	for _, e := range entries {
		requests = append(requests, getBy(e, e.Orig), getBy(e, e.Reply))
	}
	answers, err := t.kernel.do(ctx, requests)
	if err != nil {
		return nil, err
	}
	out := make([][]found, len(entries))
	for i, a := range answers {
		if a.err != nil || a.message == nil {
			continue // there is none, or none that could be had: then the request that follows fails, and says why
		}
		f, err := parse(a.message)
		switch {
		case errors.Is(err, errProtocol), errors.Is(err, errEntry):
			continue // not ours to delete
		case err != nil:
			return nil, err
		}
		of := &out[i/2]
		if f.Zone == entries[i/2].Zone && (len(*of) == 0 || (*of)[0].id != f.id) {
			*of = append(*of, f)
		}
	}
	return out, nil
}

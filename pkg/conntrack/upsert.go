package conntrack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// tries is how often an entry whose place is taken is tried: packets that are cloned to a migration's target make wrong entries all the time.
	tries = 3
	// fillTo is how full the table may become, in hundredths of its limit. The rest is for connections that nobody moves.
	fillTo = 90
)

// Result is what became of entries. Each is in one of its numbers.
type Result struct {
	// Made is the number of entries that came where there was none.
	Made int
	// Renewed had the same tuples already; they have the state that was told now.
	Renewed int
	// Replaced came in the place of entries of other tuples, which were deleted: those that the target had learnt from one direction alone.
	Replaced int
	// New are those of Made and Replaced, as the zone has them.
	New []Entry
	// Refused were not moved, NotMoved are those: the caller tells what is refused now from what was before.
	Refused  map[Reason]int
	NotMoved []Entry
	// Unlabelled are those of Made and Replaced that the kernel made without their labels.
	Unlabelled int
	// Why is the first error of the kernel's about an entry, for a log; nil if there was none.
	Why error
}

func (r *Result) refuse(why Reason, entries ...Entry) {
	if n := len(entries); n > 0 {
		r.Refused[why] += n
		r.NotMoved = append(r.NotMoved, entries...)
	}
}

// Upsert makes entries those of a zone, whatever zone they are from: those that are there are renewed, those in whose place there is one that was learnt wrongly
// replace it. Other entries stay as they are.
// The error is that of the socket; then Result has what was done before. An entry that is refused is no error.
//
// It overwrites what the zone has learnt of a connection by itself: the caller ends with it before the zone's own word counts.
func (t *Table) Upsert(ctx context.Context, zone Zone, entries []Entry) (Result, error) {
	r := Result{Refused: map[Reason]int{}}
	if zone == 0 {
		return r, errZone
	}
	want := make([]Entry, 0, len(entries))
	for _, e := range entries {
		if out, reason := e.moved(zone); reason != "" {
			r.refuse(reason, out)
		} else {
			want = append(want, out)
		}
	}
	want, err := t.fit(ctx, want, &r)
	if err != nil {
		return r, err
	}
	for some := range slices.Chunk(want, batch) {
		if err := t.upsert(ctx, some, &r); err != nil {
			return r, fmt.Errorf("put entries into connection tracking zone %d: %w", zone, err)
		}
	}
	return r, nil
}

// fit leaves those out for which the table has no room. What is there already needs none, and neither does what comes in another's place.
func (t *Table) fit(ctx context.Context, want []Entry, r *Result) ([]Entry, error) {
	room, err := t.room(ctx)
	if err != nil || room < 0 || room >= len(want) {
		return want, err
	}
	fits := make([]Entry, 0, len(want))
	for some := range slices.Chunk(want, batch) {
		have, err := t.lookUp(ctx, some)
		if err != nil {
			return nil, fmt.Errorf("look for entries in a connection tracking table that is full: %w", err)
		}
		for i, e := range some {
			switch {
			case len(have[i]) > 0:
			case room > 0:
				room--
			default:
				r.refuse(ReasonTableFull, e)
				continue
			}
			fits = append(fits, e)
		}
	}
	return fits, nil
}

// room is how many entries may be added; -1 if there is no limit.
func (t *Table) room(ctx context.Context) (int, error) {
	size, err := t.Size(ctx)
	if err != nil || size.Limit == 0 {
		return -1, err
	}
	return max(0, size.Limit*fillTo/100-size.Entries), nil
}

// upsert does it for a batch.
func (t *Table) upsert(ctx context.Context, want []Entry, r *Result) error {
	requests := make([]request, 0, len(want))
	for _, e := range want {
		requests = append(requests, create(e))
	}
	answers, err := t.kernel.do(ctx, requests)
	if err != nil {
		return err
	}
	var made, taken []Entry
	for i, a := range answers {
		switch {
		case a.err == nil:
			r.Made++
			made = append(made, want[i])
		case errors.Is(a.err, unix.EEXIST):
			taken = append(taken, want[i])
		default:
			r.kernel(want[i], a.err)
		}
	}
	for range tries {
		if len(taken) == 0 {
			break
		}
		var came []Entry
		if came, taken, err = t.meet(ctx, taken, r); err != nil {
			return err
		}
		made = append(made, came...)
	}
	r.refuse(ReasonConflict, taken...)
	r.New = append(r.New, made...)
	return t.labelled(ctx, made, r)
}

// kernel counts an entry that the kernel has refused.
func (r *Result) kernel(e Entry, err error) {
	r.refuse(ReasonKernel, e)
	if r.Why == nil {
		r.Why = fmt.Errorf("kernel refuses entry (%s): %w", e, err)
	}
}

// meeting is an entry and what keeps its place.
type meeting struct {
	want Entry
	have []found
	// last is the index of the request that decides; -1: nothing is asked for.
	last int
}

// foreign: what is there is a connection of its own, which must not be deleted. In a zone that ports share, of a router's or of hairpins, two connections from elsewhere may have been
// given the same address and port. What was learnt wrongly has no NAT: it was seen in the middle.
func (m meeting) foreign() bool {
	return slices.ContainsFunc(m.have, func(f found) bool { return f.natted() && f.Orig != m.want.Orig })
}

// same: what is there is the same connection, seen from the same side.
func (m meeting) same() bool {
	return len(m.have) == 1 && m.have[0].Orig == m.want.Orig && m.have[0].Reply == m.want.Reply
}

// meet looks at what keeps the place of entries, and renews or replaces it. It returns which were made, and whose place is taken again.
func (t *Table) meet(ctx context.Context, want []Entry, r *Result) (made, taken []Entry, err error) {
	have, err := t.lookUp(ctx, want)
	if err != nil {
		return nil, nil, err
	}
	var requests []request
	meetings := make([]meeting, len(want))
	for i, e := range want {
		m := &meetings[i]
		m.want, m.have, m.last = e, have[i], -1
		switch {
		case m.same():
			requests = append(requests, update(m.have[0].Entry, e))
		case m.foreign():
			r.refuse(ReasonConflict, e)
			continue
		default:
			for _, f := range m.have {
				requests = append(requests, remove(f))
			}
			requests = append(requests, create(e))
		}
		m.last = len(requests) - 1
	}
	answers, err := t.kernel.do(ctx, requests)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range meetings {
		if m.last < 0 {
			continue
		}
		switch err := answers[m.last].err; {
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT): // another has come meanwhile, or what was there has gone
			taken = append(taken, m.want)
		case err != nil:
			r.kernel(m.want, err)
		case m.same():
			r.Renewed++
		case len(m.have) > 0:
			r.Replaced++
			made = append(made, m.want)
		default:
			r.Made++
			made = append(made, m.want)
		}
	}
	return made, taken, nil
}

// labelled counts the entries that were to have labels and do not.
func (t *Table) labelled(ctx context.Context, made []Entry, r *Result) error {
	made = slices.DeleteFunc(slices.Clone(made), func(e Entry) bool { return e.Labels == Labels{} })
	if len(made) == 0 {
		return nil
	}
	have, err := t.lookUp(ctx, made)
	for i, e := range made {
		if err == nil && len(have[i]) == 1 && have[i][0].Labels != e.Labels {
			r.Unlabelled++
		}
	}
	return err
}

// Remove deletes entries of a zone, whatever zone they say: those with the same tuples, and no others. It returns how many there were. The error is that of the socket.
func (t *Table) Remove(ctx context.Context, zone Zone, entries []Entry) (removed int, err error) {
	if zone == 0 {
		return 0, errZone
	}
	for some := range slices.Chunk(entries, batch) {
		n, err := t.remove(ctx, zone, some)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("delete entries from connection tracking zone %d: %w", zone, err)
		}
	}
	return removed, nil
}

func (t *Table) remove(ctx context.Context, zone Zone, entries []Entry) (removed int, err error) {
	var want []Entry
	for _, e := range entries {
		if e.check() == nil { // no other is there
			e.Zone = zone
			want = append(want, e)
		}
	}
	have, err := t.lookUp(ctx, want)
	if err != nil {
		return 0, err
	}
	var requests []request
	for i, e := range want {
		if m := (meeting{want: e, have: have[i]}); m.same() {
			requests = append(requests, remove(have[i][0]))
		}
	}
	answers, err := t.kernel.do(ctx, requests)
	for _, a := range answers {
		if err == nil && a.err == nil {
			removed++
		}
	}
	return removed, err
}

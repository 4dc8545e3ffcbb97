package traffic

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// keptRuns is of how many runs a server keeps the record, the oldest goes first.
	keptRuns = 16
	// maxArrivals bounds a flow's record: MaxLength at 5 ms, and some duplicates.
	maxArrivals = 1 << 18
	// maxFlows and maxServed bound a run's record.
	maxFlows  = 16
	maxServed = 2 * maxConnections
)

// servedBucket is the bucket of connections in Arrivals.
const servedBucket = 100 * time.Millisecond

// Arrivals are what a server has seen of a run, by the server's clock. A server in a VM has stood still while the VM was stopped.
type Arrivals struct {
	Run RunID `json:"run"`
	// Start is when the first was seen; offsets are from it.
	Start time.Time `json:"start"`
	Flows []Flow    `json:"flows,omitempty"`
	// Connections are by the order in which they were opened. A connection that is still open has no Ended.
	Connections []Connection `json:"connections,omitempty"`
	// Bucket is the length of the buckets of Connections.
	Bucket time.Duration `json:"bucket"`
}

// Flow are the probes of one flow in the order of their arrival, duplicates included.
type Flow struct {
	Flow uint16         `json:"flow"`
	From netip.AddrPort `json:"from"`
	Seq  []uint32       `json:"seq"`
	At   Times          `json:"at"`
	// Corrupt arrived with wrong contents and are not in Seq.
	Corrupt int `json:"corrupt"`
	// Dropped are not in Seq because the record is full.
	Dropped int `json:"dropped,omitempty"`
}

// Duplicated counts arrivals of what had arrived before.
func (f *Flow) Duplicated() int {
	seen := make(map[uint32]bool, len(f.Seq))
	for _, s := range f.Seq {
		seen[s] = true
	}
	return len(f.Seq) - len(seen)
}

// Duplicated counts probes of all flows that arrived again.
func (a *Arrivals) Duplicated() (n int) {
	for i := range a.Flows {
		n += a.Flows[i].Duplicated()
	}
	return n
}

// Twice tells when those probes of a run were sent, by the sender's clock, that arrived more than once, each copy but the first an entry.
func (a *Arrivals) Twice(r *Result) []time.Time {
	var out []time.Time
	for i := range r.Probes {
		p := &r.Probes[i]
		seen := map[uint32]bool{}
		for _, s := range a.flow(p.Flow).Seq {
			if seen[s] && int(s) < len(p.Sent) {
				out = append(out, p.Start.Add(p.Sent[s]))
			}
			seen[s] = true
		}
	}
	return out
}

func (a *Arrivals) flow(number uint16) *Flow {
	for i := range a.Flows {
		if a.Flows[i].Flow == number {
			return &a.Flows[i]
		}
	}
	return &Flow{Flow: number}
}

func (f *Flow) list() []arrival {
	list := make([]arrival, len(f.Seq))
	for i, s := range f.Seq {
		list[i] = arrival{seq: s, at: f.At[i]}
	}
	return list
}

// recorder remembers arrivals by run.
type recorder struct {
	mu    sync.Mutex
	runs  map[RunID]*record
	order []RunID
}

type record struct {
	start  time.Time // with its monotonic reading
	flows  []*Flow
	meters []*meter
}

func newRecorder() *recorder { return &recorder{runs: map[RunID]*record{}} }

// of is a run's record, made at its first sign. r.mu is held.
func (r *recorder) of(run RunID, now time.Time) *record {
	if rec := r.runs[run]; rec != nil {
		return rec
	}
	if len(r.order) >= keptRuns {
		delete(r.runs, r.order[0])
		r.order = r.order[1:]
	}
	rec := &record{start: now}
	r.runs[run], r.order = rec, append(r.order, run)
	return rec
}

// served is a probe that arrived at a time of the wall clock.
type served struct {
	probe
	from netip.AddrPort
	at   time.Time
	// intact: its contents are what was sent.
	intact bool
}

func (r *recorder) arrived(p served) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.of(p.run, p.at)
	i := slices.IndexFunc(rec.flows, func(f *Flow) bool { return f.Flow == p.flow })
	if i < 0 {
		if len(rec.flows) >= maxFlows {
			return
		}
		i, rec.flows = len(rec.flows), append(rec.flows, &Flow{Flow: p.flow, From: p.from})
	}
	switch f := rec.flows[i]; {
	case !p.intact:
		f.Corrupt++
	case len(f.Seq) >= maxArrivals:
		f.Dropped++
	default:
		f.Seq, f.At = append(f.Seq, p.seq), append(f.At, max(p.at.Round(0).Sub(rec.start.Round(0)), 0))
	}
}

// connection makes the meter of a run's connection; one that nobody reads when the record is full.
func (r *recorder) connection(h hello, from netip.AddrPort) *meter {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.of(h.run, time.Now())
	m := newMeter(rec.start, servedBucket, Connection{Number: h.number, Kind: h.kind, Peer: from})
	if len(rec.meters) < maxServed {
		rec.meters = append(rec.meters, m)
	}
	m.opened()
	return m
}

// arrivals is a copy of a run's record.
func (r *recorder) arrivals(run RunID) (*Arrivals, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.runs[run]
	if rec == nil {
		return nil, false
	}
	a := &Arrivals{Run: run, Start: rec.start.Round(0), Bucket: servedBucket}
	for _, f := range rec.flows {
		c := *f
		c.Seq, c.At = slices.Clone(f.Seq), slices.Clone(f.At)
		a.Flows = append(a.Flows, c)
	}
	for _, m := range rec.meters {
		a.Connections = append(a.Connections, m.state())
	}
	return a, true
}

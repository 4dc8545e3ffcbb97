package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Status is a look at a run.
type Status struct {
	Run RunID `json:"run"`
	// Ended runs have a result, or Error.
	Ended bool   `json:"ended"`
	Error string `json:"error,omitempty"`
	// Wanted connections, of which Open are open and Broken are broken or could not be opened.
	Wanted int `json:"wanted"`
	Open   int `json:"open"`
	Broken int `json:"broken"`
	// Idle is for how long there has been no progress on that of the open ones which has waited longest.
	Idle Duration `json:"idle"`
	// Sent and Replied count probes to all peers.
	Sent    int `json:"sent"`
	Replied int `json:"replied"`
}

// Run is traffic that goes on. Its methods are safe for concurrent use.
type Run struct {
	spec   Spec
	start  time.Time
	prober *prober
	conns  []*connection
	stop   context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	result *Result
	err    error
}

// Begin starts a run in a place. It ends at its length, at Stop, or with ctx; then it has a result, also if its peers do not answer.
func Begin(ctx context.Context, place Place, spec Spec) (*Run, error) {
	spec.Defaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	roomToRun()
	r := &Run{spec: spec, start: time.Now(), done: make(chan struct{})}
	var err error
	if r.prober, err = newProber(ctx, place, &spec, r.start); err != nil {
		return nil, fmt.Errorf("start run %s: %w", spec.ID, err)
	}
	r.plan()
	ctx, r.stop = context.WithTimeout(ctx, spec.Length.Duration)
	go r.hold(ctx, place)
	return r, nil
}

// plan lists the connections, whose peers take turns.
func (r *Run) plan() {
	s := &r.spec
	for _, k := range []struct {
		kind Kind
		n    int
		port uint16
		rate int64
	}{
		{Echo, s.Echo.Connections, s.Ports.Echo, 0}, {Upload, s.Upload.Connections, s.Ports.Sink, s.Upload.Rate},
		{Download, s.Download.Connections, s.Ports.Source, s.Download.Rate},
	} {
		for i := range k.n {
			h := hello{run: s.ID, number: uint32(len(r.conns)), kind: k.kind, rate: k.rate}
			peer := netip.AddrPortFrom(s.Peers[i%len(s.Peers)], k.port)
			m := newMeter(r.start, s.Bucket.Duration, Connection{Number: h.number, Kind: h.kind, Peer: peer})
			r.conns = append(r.conns, &connection{hello: h, meter: m, spec: s})
		}
	}
}

// hold is the run.
func (r *Run) hold(ctx context.Context, place Place) {
	defer close(r.done)
	defer r.stop()
	var g errgroup.Group
	for _, c := range r.conns {
		g.Go(func() error {
			if c.open(ctx, place) {
				c.hold(ctx)
			}
			return nil
		})
	}
	ended := make(chan time.Duration, 1)
	g.Go(func() error {
		<-ctx.Done()
		ended <- time.Since(r.start)
		return nil
	})
	err := r.prober.probe(ctx)
	if err != nil {
		r.stop() // without probes the rest says little
	}
	_ = g.Wait()
	err = errors.Join(err, r.prober.close())
	result := &Result{Run: r.spec.ID, Start: r.start.Round(0), Length: <-ended, Bucket: r.spec.Bucket.Duration}
	result.ClockStep = time.Now().Round(0).Sub(r.start.Round(0)) - time.Since(r.start)
	for _, f := range r.prober.flows {
		result.Probes = append(result.Probes, f.result(r.prober))
	}
	for _, c := range r.conns {
		result.Connections = append(result.Connections, c.state())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result = result
	if err != nil {
		r.err = fmt.Errorf("run %s: %w", r.spec.ID, err)
	}
}

// Status is what can be said now.
func (r *Run) Status() Status {
	s := Status{Run: r.spec.ID, Wanted: len(r.conns)}
	s.Sent, s.Replied = r.prober.totals()
	for _, c := range r.conns {
		switch st := c.state(); {
		case st.Broken != "":
			s.Broken++
		case st.Opened && st.Ended == 0:
			s.Open++
			s.Idle.Duration = max(s.Idle.Duration, c.idle())
		}
	}
	select {
	case <-r.done:
		s.Ended = true
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err != nil {
			s.Error = r.err.Error()
		}
	default:
	}
	return s
}

// Stop ends the run, if it has not ended yet, and returns its result. It may be called again.
func (r *Run) Stop(ctx context.Context) (*Result, error) {
	r.stop()
	return r.Wait(ctx)
}

// Wait waits for the run's end.
func (r *Run) Wait(ctx context.Context) (*Result, error) {
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the end of run %s: %w", r.spec.ID, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result, r.err
}

// runs are those that a server makes.
type runs struct {
	mu    sync.Mutex
	known map[RunID]*Run
	order []RunID
	asked chan request
}

type request struct {
	spec  Spec
	begun chan error
}

// errNotServing is the answer to a request that comes while a server ends.
var errNotServing = errors.New("the server is ending")

func newRuns() *runs { return &runs{known: map[RunID]*Run{}, asked: make(chan request)} }

// serve begins the runs that are asked for, under ctx, and waits for their end.
func (rs *runs) serve(ctx context.Context, place Place) error {
	for {
		select {
		case <-ctx.Done():
			rs.mu.Lock()
			defer rs.mu.Unlock()
			for _, r := range rs.known {
				<-r.done
			}
			return nil
		case req := <-rs.asked:
			run, err := Begin(ctx, place, req.spec)
			if err == nil {
				rs.keep(run)
			}
			req.begun <- err
		}
	}
}

func (rs *runs) keep(run *Run) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.order) >= keptRuns {
		rs.known[rs.order[0]].stop()
		delete(rs.known, rs.order[0])
		rs.order = rs.order[1:]
	}
	rs.known[run.spec.ID], rs.order = run, append(rs.order, run.spec.ID)
}

func (rs *runs) find(id RunID) *Run {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.known[id]
}

// begin starts a run that outlives ctx, which is the request's.
func (rs *runs) begin(ctx context.Context, spec Spec) (RunID, error) {
	spec.Defaults() // draws the ID
	if rs.find(spec.ID) != nil {
		return 0, fmt.Errorf("run %s exists: leave the ID out to get one", spec.ID)
	}
	if err := spec.Validate(); err != nil {
		return 0, err
	}
	req := request{spec: spec, begun: make(chan error, 1)}
	select {
	case rs.asked <- req:
		return spec.ID, <-req.begun
	case <-ctx.Done():
		return 0, errNotServing
	}
}

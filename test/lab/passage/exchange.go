package passage

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// PerDirection is how many connections each side opens in Holding.
const PerDirection = 10

// Holding are connections without probes, for at most so long. They are no faster than an emulated processor serves with time to spare: one that is busy anyway
// takes seconds to work off what has piled up while it was stopped, and the network looks guilty.
func Holding(length time.Duration) traffic.Spec {
	s := traffic.Usual()
	s.Probe, s.Length = traffic.Probing{}, traffic.Duration{Duration: length}
	s.Echo.Connections, s.Echo.Interval.Duration = PerDirection-s.Upload.Connections-s.Download.Connections, 200*time.Millisecond
	s.Upload.Rate, s.Download.Rate = 100_000, 100_000
	return s
}

// probing are probes without connections, of one migration, so that what is lost is counted for each.
func probing() traffic.Spec {
	return traffic.Spec{Probe: traffic.Usual().Probe, Length: traffic.Duration{Duration: timeout}}
}

// End is one end of the traffic: its control port, and its addresses.
type End struct {
	Ask *traffic.Client
	IPs []netip.Addr
}

// only is the end with one of its addresses, whichever there is.
func (e End) only(i int) End {
	e.IPs = e.IPs[i%len(e.IPs):][:1]
	return e
}

// run is traffic that one end makes towards the other.
type run struct {
	id       traffic.RunID
	at, with End
	began    time.Time
}

// Seen is what became of a run, for who made it and for who served it.
type Seen struct {
	// Began is when it did, by the clock of who asked for it: a VM's own may be another one.
	Began    time.Time
	Result   *traffic.Result
	Arrivals *traffic.Arrivals
}

func begin(ctx context.Context, at, with End, spec traffic.Spec) (run, error) {
	spec.Peers = with.IPs
	began := time.Now()
	id, err := at.Ask.Start(ctx, spec)
	if err != nil {
		return run{}, err
	}
	return run{id: id, at: at, with: with, began: began}, at.Ask.AwaitOpen(ctx, id)
}

func (r run) stop(ctx context.Context) (s Seen, err error) {
	s.Began = r.began
	if s.Result, err = r.at.Ask.Stop(ctx, r.id); err != nil {
		return s, err
	}
	s.Arrivals, err = r.with.Ask.Arrivals(ctx, r.id)
	return s, err
}

// Exchange is the same traffic to the VM and from it.
type Exchange struct{ to, from run }

// Exchange starts traffic both ways, and returns when its connections are open and its probes answered.
func (s *Scene) Exchange(ctx context.Context, spec traffic.Spec) (*Exchange, error) {
	return newExchange(ctx, s.Guest, s.peer, spec)
}

func newExchange(ctx context.Context, guest, peer End, spec traffic.Spec) (*Exchange, error) {
	var x Exchange
	var err error
	if x.to, err = begin(ctx, peer, guest, spec); err != nil {
		return nil, fmt.Errorf("traffic to the VM: %w", err)
	}
	if x.from, err = begin(ctx, guest, peer, spec); err != nil {
		return nil, fmt.Errorf("traffic from the VM: %w", err)
	}
	return &x, nil
}

// Idle is for how long there has been no progress on that of its connections which has waited longest.
func (x *Exchange) Idle(ctx context.Context) (longest time.Duration, err error) {
	for _, r := range []run{x.to, x.from} {
		status, err := r.at.Ask.Status(ctx, r.id)
		if err != nil {
			return 0, fmt.Errorf("ask whether connections make progress: %w", err)
		}
		longest = max(longest, status.Idle.Duration)
	}
	return longest, nil
}

// Stop ends the traffic and says what became of it.
func (x *Exchange) Stop(ctx context.Context) (to, from Seen, err error) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { to, err = x.to.stop(gctx); return err })
	g.Go(func() (err error) { from, err = x.from.stop(gctx); return err })
	if err = g.Wait(); err != nil {
		err = fmt.Errorf("end the traffic and ask what became of it: %w", err)
	}
	return to, from, err
}

package demo

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// perDirection is how many connections each side opens.
const perDirection = 10

// holding are connections without probes: they are held through all migrations. They are no faster than an emulated processor serves with time to spare: one
// that is busy anyway takes seconds to work off what has piled up while it was stopped, and the network looks guilty.
func holding() traffic.Spec {
	s := traffic.Usual()
	s.Probe, s.Length = traffic.Probing{}, traffic.Duration{Duration: timeout}
	s.Echo.Connections, s.Echo.Interval.Duration = perDirection-s.Upload.Connections-s.Download.Connections, 200*time.Millisecond
	s.Upload.Rate, s.Download.Rate = 100_000, 100_000
	return s
}

// probing are probes without connections, of one migration, so that what is lost is counted for each.
func probing() traffic.Spec {
	return traffic.Spec{Probe: traffic.Usual().Probe, Length: traffic.Duration{Duration: timeout}}
}

// end is one end of the traffic: its control port, and its addresses.
type end struct {
	ask *traffic.Client
	ips []netip.Addr
}

// only is the end with one of its addresses, whichever there is.
func (e end) only(i int) end {
	e.ips = e.ips[i%len(e.ips):][:1]
	return e
}

// run is traffic that one end makes towards the other.
type run struct {
	id       traffic.RunID
	at, with end
}

// seen is what became of a run, for who made it and for who served it.
type seen struct {
	result   *traffic.Result
	arrivals *traffic.Arrivals
}

func begin(ctx context.Context, at, with end, spec traffic.Spec) (run, error) {
	spec.Peers = with.ips
	id, err := at.ask.Start(ctx, spec)
	if err != nil {
		return run{}, err
	}
	return run{id: id, at: at, with: with}, at.ask.AwaitOpen(ctx, id)
}

func (r run) stop(ctx context.Context) (s seen, err error) {
	if s.result, err = r.at.ask.Stop(ctx, r.id); err != nil {
		return s, err
	}
	s.arrivals, err = r.with.ask.Arrivals(ctx, r.id)
	return s, err
}

// exchange is the same traffic to the VM and from it.
type exchange struct{ to, from run }

func newExchange(ctx context.Context, guest, peer end, spec traffic.Spec) (*exchange, error) {
	var x exchange
	var err error
	if x.to, err = begin(ctx, peer, guest, spec); err != nil {
		return nil, fmt.Errorf("traffic to the VM: %w", err)
	}
	if x.from, err = begin(ctx, guest, peer, spec); err != nil {
		return nil, fmt.Errorf("traffic from the VM: %w", err)
	}
	return &x, nil
}

func (x *exchange) stop(ctx context.Context) (to, from seen, err error) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { to, err = x.to.stop(gctx); return err })
	g.Go(func() (err error) { from, err = x.from.stop(gctx); return err })
	if err = g.Wait(); err != nil {
		err = fmt.Errorf("end the traffic and ask what became of it: %w", err)
	}
	return to, from, err
}

// connections are those that were held through all migrations.
type connections struct {
	length   time.Duration
	to, from seen
}

// all are the connections, as who opened them saw them.
func (c connections) all() []traffic.Connection {
	return append(append([]traffic.Connection(nil), c.to.result.Connections...), c.from.result.Connections...)
}

// held counts them. How long one made no progress is told by the peer, in either direction: the VM's clock stands still while the VM is stopped.
func (c connections) held() timeline.Connections {
	h := timeline.Held(c.to.result, c.from.result)
	peers := traffic.Result{Connections: append(append([]traffic.Connection(nil), c.to.result.Connections...), c.from.arrivals.Connections...)}
	h.Stall = timeline.Held(&peers).Stall
	return h
}

// counted is held without the stall, which may be that of another migration.
func (c connections) counted() timeline.Connections {
	h := c.held()
	h.Stall = 0
	return h
}

func (c connections) String() string {
	h := c.held()
	return fmt.Sprintf("%d TCP connections to the VM and from it were held for %s, through both migrations: %d were kept, the longest stall was %s ms.",
		h.Total, c.length.Round(time.Second), h.Kept, millis(h.Stall))
}

// throughput of the two bulk streams that the peer holds with the VM.
func (c connections) throughput() []timeline.Series {
	r := c.to.result
	return []timeline.Series{
		timeline.Streams("to the VM", traffic.Upload, r.Start, r.Bucket, r.Connections),
		timeline.Streams("from the VM", traffic.Download, r.Start, r.Bucket, r.Connections),
	}
}

// millis is a time in milliseconds, to a tenth.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Round(100*time.Microsecond))/float64(time.Millisecond), 'f', 1, 64)
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// intrude tries what is forbidden over and over until ctx ends, and counts tries and successes: TCP from a stranger, and UDP from the peer.
func (s *policyVM) intrude(ctx context.Context) (tried, admitted *atomic.Int64, done <-chan struct{}) {
	tried, admitted = &atomic.Int64{}, &atomic.Int64{}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for ctx.Err() == nil {
			tried.Add(1)
			if s.dial(ctx, s.stranger) == nil {
				admitted.Add(1)
			}
			if s.datagram(ctx) == nil {
				admitted.Add(1)
			}
		}
	}()
	return tried, admitted, finished
}

// datagram sends one to the VM's UDP echo port, and waits for it to come back.
func (s *policyVM) datagram(ctx context.Context) error {
	conn, err := s.peer.Dial(ctx, "udp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		return err
	}
	return errors.Join(echoed(conn, 200*time.Millisecond), conn.Close())
}

// reachesNobodyElse lets the VM connect to whom it may not.
func (s *policyVM) reachesNobodyElse(ctx context.Context, t *testing.T) {
	t.Helper()
	spec := traffic.Spec{Peers: []netip.Addr{s.strangerIP}, Echo: traffic.Echoing{Connections: 1}, Length: traffic.Duration{Duration: time.Minute}}
	id, err := s.Guest.Ask.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // in which it would have connected a hundred times
	result, err := s.Guest.Ask.Stop(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if open, _ := result.Open(); open > 0 {
		t.Errorf("the VM has connected to %s, which its policy forbids", s.strangerIP)
	}
}

// voyageTraffic is a few connections of each kind each way. More downloads than others: they are what suffers.
func voyageTraffic() traffic.Spec {
	spec := passage.Holding(10 * time.Minute)
	spec.Echo.Connections, spec.Upload.Connections, spec.Download.Connections = 2, 2, 4
	spec.Upload.Rate, spec.Download.Rate = 50_000, 50_000
	spec.Silence.Duration = silence
	return spec
}

// trickle are downloads of a byte a second. Their receiver has acknowledged everything nearly all the time, so that the first that the target sees of one is the
// server's segment.
func trickle() traffic.Spec {
	spec := passage.Holding(10 * time.Minute)
	spec.Echo, spec.Upload, spec.Download = traffic.Echoing{}, traffic.Bulk{}, traffic.Bulk{Connections: 4, Rate: 1}
	spec.Silence.Duration = silence
	return spec
}

// carried are connections and who opened them.
type carried struct {
	traffic.Connection
	who string
	// rhythm is how long it makes no progress when nothing is wrong.
	rhythm time.Duration
	// stalled is when its longest stall began, against QEMU's stop of the VM: negative before it, zero where that is not known.
	stalled time.Duration
}

func (c carried) String() string {
	text := fmt.Sprintf("%s, %s to %s: %d bytes, longest stall %s, from %s on", c.who, c.Kind, c.Peer, c.Bytes, c.Stall.Length().Round(time.Millisecond), c.Stall.From.Round(time.Millisecond))
	if c.stalled != 0 {
		text += fmt.Sprintf(", which is %+.3f s from QEMU's stop", c.stalled.Seconds())
	}
	if c.Stall.Open {
		text += " to the end"
	}
	if c.Broken != "" {
		text += fmt.Sprintf(", broken: %s, %s", c.Broken, c.Error)
	}
	return text
}

// lost says that it was cut off, or made no progress for longer than limit. One that is about to send again at the very end is not cut off.
func (c carried) lost(limit time.Duration) bool {
	return c.Bytes == 0 || c.Stall.Length() > limit || c.Broken != "" && c.Broken != traffic.Timeout
}

const (
	peers  = "the peer's"
	guests = "the VM's"
)

// exchange is traffic both ways, with its connections' rhythm.
type exchange struct {
	*passage.Exchange
	rhythm time.Duration
}

// cargo begins the traffic of a voyage.
func (s *policyVM) cargo(t *testing.T) (out []exchange) {
	t.Helper()
	for _, c := range []struct {
		spec   traffic.Spec
		rhythm time.Duration
	}{{voyageTraffic(), voyageTraffic().Echo.Interval.Duration}, {trickle(), time.Second}} {
		x, err := s.Exchange(t.Context(), c.spec)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, exchange{x, c.rhythm})
	}
	return out
}

// idle is for how long there has been no progress on that of the connections which has waited longest.
func idle(ctx context.Context, exchanges []exchange) (longest time.Duration, err error) {
	for _, x := range exchanges {
		d, err := x.Idle(ctx)
		if err != nil {
			return 0, err
		}
		longest = max(longest, d)
	}
	return longest, nil
}

func carriedBy(ctx context.Context, t *testing.T, exchanges []exchange, stop lab.Stop) (out []carried) {
	t.Helper()
	for _, x := range exchanges {
		to, from, err := x.Stop(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []struct {
			who string
			passage.Seen
		}{{peers, to}, {guests, from}} {
			for _, c := range end.Result.Connections {
				out = append(out, carried{c, end.who, x.rhythm, end.Began.Add(c.Stall.From).Sub(stop.Stopped)})
			}
		}
	}
	for _, c := range out {
		t.Log(c)
	}
	return out
}

// voyage is one migration under traffic, and what became of the traffic.
type voyage struct {
	from, to string
	// stop is QEMU's, tried are the forbidden connections that were tried.
	stop        time.Duration
	tried       int64
	connections []carried
}

// voyage moves the VM under traffic and intruders, and has the connections when afterwards has returned.
func (s *policyVM) voyage(t *testing.T, afterwards func([]exchange)) voyage {
	t.Helper()
	ctx := t.Context()
	exchanges := s.cargo(t)
	state, err := s.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := voyage{from: state.Node, to: s.Target}
	if v.from == v.to {
		v.to = s.Source
	}
	intruding, rest := context.WithCancel(ctx)
	defer rest()
	tried, admitted, rested := s.intrude(intruding)
	g, err := s.VM.Migrate(ctx, lab.MigrateOptions{To: v.to})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
	s.reachesNobodyElse(ctx, t)
	afterwards(exchanges)
	rest()
	<-rested
	if admitted.Load() > 0 || tried.Load() < 3 {
		t.Errorf("of %d forbidden connections %d were admitted", tried.Load(), admitted.Load())
	}
	stop, err := g.QEMU(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v.stop, v.tried = stop.Duration(), tried.Load()
	t.Logf("from %s to %s: QEMU had stopped the VM for %s; %d forbidden connections were tried", v.from, v.to, v.stop, v.tried)
	v.connections = carriedBy(ctx, t, exchanges, stop)
	return v
}

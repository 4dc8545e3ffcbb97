package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// drainTime is for how long replies are awaited after the last probe.
const drainTime = time.Second

// prober sends probes to peers and takes their replies.
type prober struct {
	run      RunID
	start    time.Time
	interval time.Duration
	size     int
	flows    []*flow
}

// flow are the probes to one peer.
type flow struct {
	number uint16
	peer   netip.Addr
	sock   *datagrams

	// Of the sender alone, which waits for no lock: whoever holds it may be waiting for a processor. They are read when it has ended.
	sent Times
	late time.Duration
	// count is len(sent).
	count   atomic.Int64
	refused atomic.Int64

	mu      sync.Mutex
	replies []arrival
	corrupt int
}

// roomAtFirst is for so many probes.
const roomAtFirst = 1 << 14

func newProber(ctx context.Context, place Place, spec *Spec, start time.Time) (*prober, error) {
	p := &prober{run: spec.ID, start: start, interval: spec.Probe.Interval.Duration, size: spec.Probe.Size}
	if p.interval == 0 {
		return p, nil
	}
	for i, peer := range spec.Peers {
		conn, err := place.Dial(ctx, "udp", net.JoinHostPort(peer.String(), strconv.Itoa(int(spec.Ports.Probe))))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("send probes to %s: %w", peer, err), p.close())
		}
		udp, err := udpConn(conn)
		if err != nil {
			return nil, errors.Join(err, conn.Close(), p.close())
		}
		sock, err := newDatagrams(udp)
		if err != nil {
			return nil, errors.Join(err, conn.Close(), p.close())
		}
		p.flows = append(p.flows, &flow{number: uint16(i), peer: peer, sock: sock, sent: make(Times, 0, roomAtFirst)})
	}
	return p, nil
}

func (p *prober) close() error {
	var errs []error
	for _, f := range p.flows {
		errs = append(errs, f.sock.conn.Close())
	}
	return errors.Join(errs...)
}

// probe sends until ctx ends, and then waits for replies that are under way.
func (p *prober) probe(ctx context.Context) error {
	if len(p.flows) == 0 {
		return nil
	}
	var g errgroup.Group
	for _, f := range p.flows {
		g.Go(func() error { return f.receive(p) })
	}
	g.Go(func() error {
		buf := make([]byte, p.size)
		err := every(ctx, p.interval, func(i int, _, late time.Duration) error {
			var errs []error
			for _, f := range p.flows {
				errs = append(errs, f.send(p, buf, uint32(i), late))
			}
			return errors.Join(errs...)
		})
		until := time.Now().Add(drainTime)
		for _, f := range p.flows {
			err = errors.Join(err, f.sock.conn.SetReadDeadline(until))
		}
		return err
	})
	return g.Wait()
}

// send sends probe seq. Errors about this very datagram are counted.
func (f *flow) send(p *prober, buf []byte, seq uint32, late time.Duration) error {
	probe{kind: typeProbe, flow: f.number, run: p.run, seq: seq}.put(buf)
	f.late = max(f.late, late)
	f.sent = append(f.sent, time.Since(p.start))
	f.count.Add(1)
	_, err := f.sock.conn.Write(buf)
	if err != nil && transient(err) {
		f.refused.Add(1)
		return nil
	}
	if err != nil {
		return fmt.Errorf("send a probe to %s: %w", f.peer, err)
	}
	return nil
}

// receive takes replies until the read deadline.
func (f *flow) receive(p *prober) error {
	buf := make([]byte, maxProbe+1)
	for {
		r, err := f.sock.read(buf)
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			return nil
		case err != nil && transient(err):
			f.refused.Add(1)
		case err != nil:
			return fmt.Errorf("receive replies of %s: %w", f.peer, err)
		default:
			f.reply(p, r)
		}
	}
}

func (f *flow) reply(p *prober, r received) {
	got, ours, intact := parseProbe(r.data)
	if !ours || got.run != p.run || got.flow != f.number || got.kind != typeReply {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !intact {
		f.corrupt++
		return
	}
	f.replies = append(f.replies, arrival{seq: got.seq, at: max(r.at.Sub(p.start.Round(0)), 0)})
}

// result is what is known when the run has ended.
func (f *flow) result(p *prober) Probes {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Probes{Flow: f.number, Peer: f.peer, Start: p.start.Round(0), Interval: p.interval, Sent: append(Times(nil), f.sent...), Late: f.late}
	r.Arrived, r.Counts = count(f.replies, len(f.sent))
	r.Counts.Corrupt, r.Counts.Refused = f.corrupt, int(f.refused.Load())
	var from, to time.Duration
	if n := len(f.sent); n > 0 {
		from, to = f.sent[0], f.sent[n-1]
	}
	r.Gap = longest(r.Arrived, from, to)
	r.Gap.Paused = paused(r.Sent, r.Gap, r.Interval)
	return r
}

// totals are cheap counts for a look at a run that goes on.
func (p *prober) totals() (sent, replied int) {
	for _, f := range p.flows {
		f.mu.Lock()
		sent, replied = sent+int(f.count.Load()), replied+len(f.replies)
		f.mu.Unlock()
	}
	return sent, replied
}

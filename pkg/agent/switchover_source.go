package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/pkg/peer"
)

const (
	// A hypervisor that cannot be asked, and a target's agent that cannot be reached or does not know of the migration yet, are tried again after lineRetry, and then less and less often.
	lineRetry    = 250 * time.Millisecond
	maxLineRetry = 5 * time.Second
	// addressTimeout bounds the question where the target is.
	addressTimeout = 5 * time.Second
)

// guard begins to look after the VM's stop, and after its connections, once the ports are prepared.
func (w *watch) guard(ctx context.Context, pm *v1alpha1.PortMigration) {
	s := w.o.switchover
	if w.guarded || s == nil || w.key.side != sideSource || pm == nil || pm.Status.Over() || !reached(pm, v1alpha1.StagePrepared) {
		return
	}
	w.guarded = true
	l := &line{s: s, w: w, pm: pm}
	if s.handoff != nil {
		l.courier = newCourier(s.handoff, l)
		w.courier = l.courier
		w.readers.Go(func() { l.courier.run(ctx) })
	}
	if s.declined(pm, pm.Spec.Source) {
		w.log.Info("the target's agent is not told when the VM stops: its annotation " + v1alpha1.SwitchoverAnnotation + ` is "false"`)
		return
	}
	w.readers.Go(func() { s.guard(ctx, l) })
}

// guard tells the target's agent what the source's hypervisor tells, until ctx ends. The connection is there before it is needed.
func (s *switchover) guard(ctx context.Context, l *line) {
	w := l.w
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { l.keep(ctx) })
	retry := newRetry()
	for failed := false; ctx.Err() == nil; {
		events, err := s.stops(ctx, hypervisor.Launcher{Pods: s.pods, UID: string(l.pm.Spec.Source.Pod.UID)})
		if err == nil {
			retry.Reset()
			l.follow(ctx, events)
		} else if !failed && !l.stopped {
			failed = true
			w.o.metrics.switchovers.WithLabelValues(switchoverUnheard).Inc()
			w.log.Info("the hypervisor cannot be asked: the VM's ports are open on the target when it announces itself there", "error", err)
		}
		pauseFor(ctx, retry.NextBackOff())
	}
}

func newRetry() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = lineRetry, maxLineRetry, 0
	return b
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// line is the way to the target's agent, for one migration.
type line struct {
	s  *switchover
	w  *watch
	pm *v1alpha1.PortMigration
	// courier is nil if connections are not handed over.
	courier *courier
	// stopped belongs to the loop that follows the events.
	stopped bool

	mu   sync.Mutex
	conn *peer.Conn
	// known are the target's addresses, so that the API server need not be asked when there is no time.
	known []netip.Addr
}

// follow acts on events until there are no more.
func (l *line) follow(ctx context.Context, events <-chan hypervisor.Event) {
	for e := range events {
		switch {
		case e == hypervisor.Stopped:
			l.stopped = true
			if l.courier != nil { // the last look goes on beside the message, and does not wait for its answer
				l.courier.finish()
			}
			l.signal(ctx)
		case e == hypervisor.Resumed && l.stopped:
			l.stopped = false
			l.takeBack(ctx)
		}
	}
}

// ports are the names of all that are moved.
func (l *line) ports() (out []string) {
	for _, p := range l.pm.Spec.Ports {
		out = append(out, p.Name)
	}
	return out
}

// signal tells that the VM was stopped, and notes what was sent to it here until the target's agent has answered.
func (l *line) signal(ctx context.Context) {
	w, at := l.w, time.Now()
	taps := w.list()
	before := make([]uint64, len(taps))
	var unknown error
	var counting sync.WaitGroup
	counting.Go(func() { // beside the message, which is in a hurry
		for i, t := range taps {
			var err error
			before[i], err = w.o.links.Sent(t.port.Name)
			unknown = errors.Join(unknown, err)
		}
	})
	err := l.send(ctx, peer.Message{Kind: peer.Stopped, Ports: l.ports()})
	took := time.Since(at)
	counting.Wait()
	for i, t := range taps {
		after, serr := w.o.links.Sent(t.port.Name)
		t.update(func(s *sighting) {
			s.stopped, s.lost, s.counted = at, frames(before[i], after), err == nil && unknown == nil && serr == nil
		})
	}
	if err != nil {
		w.o.metrics.switchovers.WithLabelValues(switchoverUndelivered).Inc()
		w.log.Warn("the VM was stopped, and the target's agent does not know: the ports are open there when the VM announces itself", "error", err)
		return
	}
	w.o.metrics.switchovers.WithLabelValues(switchoverSignalled).Inc()
	w.log.Info("the VM was stopped, and the target's agent knows", "took", took)
}

// takeBack tells that the VM goes on here, and announces it: switches have heard of it on the target.
func (l *line) takeBack(ctx context.Context) {
	w := l.w
	if err := l.send(ctx, peer.Message{Kind: peer.Resumed, Ports: l.ports()}); err != nil {
		w.log.Warn("the VM goes on here, and the target's agent does not know: its port is open there until the migration is seen to have failed", "error", err)
	} else {
		w.log.Info("the VM goes on here, and the target's agent knows")
	}
	for _, t := range w.list() {
		if err := w.say(t, frame.Opening(t.mac)); err != nil {
			w.log.Warn("VM could not be announced where it goes on", "port", t.port.ID, "error", err)
		}
	}
}

// keep has a connection until ctx ends.
func (l *line) keep(ctx context.Context) {
	retry := newRetry()
	for said := ""; ctx.Err() == nil; {
		conn, err := l.dial(ctx)
		if err == nil {
			retry.Reset()
			said = ""
			l.set(conn)
			err = conn.Keep(ctx)
			l.set(nil)
			_ = conn.Close()
		}
		if text := fmt.Sprint(err); ctx.Err() == nil && text != said {
			said = text
			l.w.log.Info("the target's agent is not told when the VM stops", "error", err)
		}
		pauseFor(ctx, retry.NextBackOff())
	}
}

func (l *line) set(c *peer.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = c
}

// send uses the connection that there is, or makes another: a late signal is better than none.
func (l *line) send(ctx context.Context, m peer.Message) error {
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	var err error
	if conn != nil {
		if _, err = conn.Send(ctx, m); err == nil || errors.Is(err, peer.ErrRefused) {
			return err
		}
	}
	again, derr := l.dial(ctx)
	if derr != nil {
		return errors.Join(err, derr)
	}
	defer again.Close() //nolint:errcheck // the answer has been read
	_, err = again.Send(ctx, m)
	return err
}

// dial connects to the target's agent at one of its node's addresses.
func (l *line) dial(ctx context.Context) (*peer.Conn, error) {
	node := l.pm.Spec.Target.Node
	addresses, err := l.addresses(ctx)
	if err != nil {
		return nil, err
	}
	errs := []error{fmt.Errorf("node %s has no agent that can be reached at its addresses %v", node, addresses)}
	m := peer.Migration{Namespace: l.pm.Namespace, UID: string(l.pm.Spec.Migration.UID)}
	for _, a := range addresses {
		conn, err := peer.Dial(ctx, peer.Target{Address: net.JoinHostPort(a.String(), strconv.Itoa(l.s.port)), Node: node}, l.s.files, m)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	l.mu.Lock()
	l.known = nil // it may have others now
	l.mu.Unlock()
	return nil, errors.Join(errs...)
}

// addresses are those of the target's node.
func (l *line) addresses(ctx context.Context) ([]netip.Addr, error) {
	l.mu.Lock()
	known := l.known
	l.mu.Unlock()
	if known != nil {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	read, err := l.s.addresses(ctx, l.pm.Spec.Target.Node)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.known = read
	l.mu.Unlock()
	return read, nil
}

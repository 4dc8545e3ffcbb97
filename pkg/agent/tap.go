package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// pause is for how long frames are left to the kernel after some were read: their times are the kernel's, and a VM under load does not wake the agent for each.
const pause = time.Millisecond

// tap is one port's link, and what was seen there. Safe for concurrent use.
type tap struct {
	port   ovs.Port
	mac    net.HardwareAddr
	frames capture
	// voice is what the port is opened by: it is there before it is needed. The source's is nil, which seldom says anything.
	voice sender
	// reading and unblocking are set by the watch, under its lock.
	reading, unblocking bool

	mu   sync.Mutex
	seen sighting
	gone bool
}

func (t *tap) update(f func(*sighting)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.seen)
}

func (t *tap) sighting() (s sighting) {
	t.update(func(have *sighting) { s = *have })
	return s
}

func (t *tap) announceAt(ready time.Time) (time.Time, bool) {
	s := t.sighting()
	return s.announceAt(ready)
}

// open begins to see frames of a port. A link that was made anew takes the place of the earlier one, in which no VM runs any more.
func (w *watch) open(p ovs.Port) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("port %s: its MAC address %q is none", p.ID, p.MAC)
	}
	t := &tap{port: p, mac: mac}
	if t.frames, err = w.o.links.Open(p.Name, mac); err != nil {
		return fmt.Errorf("port %s: %w", p.ID, err)
	}
	if w.key.side == sideTarget {
		if t.voice, err = w.o.links.Sender(p.Name, p.Owner.Netns); err != nil {
			return errors.Join(fmt.Errorf("port %s: %w", p.ID, err), t.close())
		}
	}
	w.mu.Lock()
	old, closed := w.taps[p.ID], w.closed
	if !closed {
		w.taps[p.ID] = t
	}
	w.mu.Unlock()
	switch {
	case closed:
		return t.close()
	case old != nil:
		return old.close()
	}
	return nil
}

// say puts a frame on the pod's side of a port's link.
func (w *watch) say(t *tap, b []byte) error {
	if t.voice != nil {
		return t.voice.Send(b)
	}
	voice, err := w.o.links.Sender(t.port.Name, t.port.Owner.Netns)
	if err != nil {
		return err
	}
	return errors.Join(voice.Send(b), voice.Close())
}

// attached notes that OVN has installed the port.
func (w *watch) attached(port ident.PortName) {
	if t := w.tap(port); t != nil {
		t.update(func(s *sighting) { s.attached = time.Now() })
	}
	w.poke()
}

// tap is nil if the port is not looked at.
func (w *watch) tap(port ident.PortName) *tap {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.taps[port]
}

// detached: frames were seen, and every link is gone.
func (w *watch) detached() bool {
	taps := w.list()
	for _, t := range taps {
		t.mu.Lock()
		gone := t.gone
		t.mu.Unlock()
		if !gone {
			return false
		}
	}
	return len(taps) > 0
}

// read starts the readers of taps that have none, and on the target what watches OVN's block of the port once that is there.
func (w *watch) read(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.taps {
		if !t.reading {
			t.reading = true
			w.readers.Go(func() { w.follow(t) })
			w.readers.Go(func() { w.quieten(ctx, t) })
		}
		if w.key.side == sideTarget && !t.unblocking && !t.sighting().attached.IsZero() {
			t.unblocking = true
			w.readers.Go(func() { w.unblocked(ctx, t) })
		}
	}
}

// follow reads a tap until its link is gone or it is closed.
func (w *watch) follow(t *tap) {
	defer w.poke()
	frames := make([]frame.Seen, 256)
	for {
		n, err := t.frames.Read(frames)
		for _, f := range frames[:n] {
			if w.saw(t, f) {
				w.poke()
			}
		}
		if err != nil {
			t.mu.Lock()
			t.gone = true
			t.mu.Unlock()
			if !errors.Is(err, os.ErrClosed) {
				w.log.Info("link of a migration is gone", "port", t.port.ID, "link", t.port.Name, "reason", err)
			}
			if err := t.close(); err != nil { // a socket keeps the pod's network namespace
				w.log.Warn("link of a migration could not be left", "error", err)
			}
			return
		}
		time.Sleep(pause)
	}
}

// saw takes a frame in and reports whether it is news.
func (w *watch) saw(t *tap, f frame.Seen) (news bool) {
	var now sighting
	t.update(func(s *sighting) { news = s.add(f); now = *s })
	if !news || w.key.side != sideTarget {
		return false
	}
	w.countQueued(t, now)
	if f.RARP {
		by := byVM
		if now.byAgent {
			by = byAgent
		}
		w.o.metrics.announcements.WithLabelValues(by).Inc()
		w.log.Info("VM announced", "port", t.port.ID, "at", f.At, "by", by, "frames_before", now.early)
		if now.early > 0 {
			w.log.Warn("frames came from the target before the VM was announced there, and were dropped: its kernel or its VM is not silent",
				"port", t.port.ID, "frames", now.early, "first", now.earliest.String(), "first_at", now.earliest.At)
		}
	}
	return true
}

// unblocked notes when OVN lets pass what the VM sends here: that it was announced does not say so, for ovn-controller may be busy, or away.
func (w *watch) unblocked(ctx context.Context, t *tap) {
	db, err := w.o.node.database(ctx)
	if err == nil {
		err = db.WatchOpened(ctx, t.port.Name, func(at time.Time) {
			t.update(func(s *sighting) { s.unblocked, s.blocked = at, at.IsZero() })
			w.poke()
		})
	}
	if ctx.Err() == nil && !errors.Is(err, ovs.ErrNoPort) { // it may have been detached already
		w.log.Warn("when OVN opens the port is not known any more: the interruption is told until the VM's announcement", "port", t.port.ID, "error", err)
	}
	t.update(func(s *sighting) { s.blocked = false })
	w.poke()
}

// close may be called again.
func (t *tap) close() error {
	err := ended(t.frames.Close())
	if t.voice != nil {
		err = errors.Join(err, ended(t.voice.Close()))
	}
	return err
}

// ended is err, unless it says that something is closed already.
func ended(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// close ends the readers.
func (w *watch) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	for _, t := range w.list() {
		if err := t.close(); err != nil {
			w.log.Warn("link of a migration could not be left", "error", err)
		}
	}
	w.readers.Wait()
	w.reception.close()
}

// quieten keeps the pod of a port from ending connections of a VM that is masqueraded behind it. While both pods are reached, each is sent what belongs to
// connections as they go on in the other, and NAT leaves it to the pod itself, which would answer by a reset. Nothing else comes to a VM's pod by that state.
func (w *watch) quieten(ctx context.Context, t *tap) {
	if err := w.o.links.DropInvalid(ctx, t.port.Owner.Netns, t.port.Owner.IfName); err != nil && ctx.Err() == nil {
		w.log.Warn("the pod may end connections of a VM that is masqueraded behind it, for it is sent what belongs to the VM on the other side", "port", t.port.ID, "error", err)
	}
}

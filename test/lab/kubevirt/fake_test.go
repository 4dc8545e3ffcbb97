package kubevirt

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// fakeLaunchers are launchers without pods and without QEMU: they do what guest's do, after a moment.
type fakeLaunchers struct {
	// copying is how long a migration copies memory.
	copying time.Duration

	mu    sync.Mutex
	byPod map[types.UID]*fakeLauncher
}

func newFakeLaunchers() *fakeLaunchers {
	return &fakeLaunchers{copying: 50 * time.Millisecond, byPod: map[types.UID]*fakeLauncher{}}
}

func (f *fakeLaunchers) Decorate(pod *corev1.Pod, _ int) {
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: computeContainer, Image: "registry.invalid/launcher:v1"})
}

func (f *fakeLaunchers) of(uid types.UID) *fakeLauncher {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byPod[uid] == nil {
		f.byPod[uid] = &fakeLauncher{all: f, status: guest.Status{State: guest.Idle}, news: make(chan struct{}), exited: -1}
	}
	return f.byPod[uid]
}

func (f *fakeLaunchers) Connect(_ context.Context, pod *corev1.Pod) (Launcher, error) {
	l := f.of(pod.UID)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exited >= 0 {
		return nil, errors.New("the launcher has ended")
	}
	return l, nil
}

func (f *fakeLaunchers) Relay(_ context.Context, source, target *corev1.Pod) (Relay, error) {
	r := &fakeRelay{source: f.of(source.UID), target: f.of(target.UID)}
	r.source.mu.Lock()
	defer r.source.mu.Unlock()
	r.source.relay = r
	return r, nil
}

type fakeRelay struct{ source, target *fakeLauncher }

func (r *fakeRelay) Cut()         {}
func (r *fakeRelay) Close() error { return nil }

// fakeLauncher is a state machine in place of QEMU.
type fakeLauncher struct {
	all *fakeLaunchers

	mu     sync.Mutex
	status guest.Status
	events []guest.Event
	news   chan struct{}
	exited int // the container's exit status, -1 while it runs
	relay  *fakeRelay
	in     guest.Incoming
	cancel chan struct{}
	goOn   chan struct{}
}

func (l *fakeLauncher) change(f func(), e guest.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exited >= 0 {
		return
	}
	f()
	e.Seq, e.Time = len(l.events)+1, time.Now()
	l.events = append(l.events, e)
	close(l.news)
	l.news = make(chan struct{})
}

// exit ends the launcher's process.
func (l *fakeLauncher) exit(status int) {
	l.change(func() { l.status.State = guest.Ended }, guest.Event{Type: guest.QEMUEnded})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exited < 0 {
		l.exited = status
		close(l.news)
		l.news = make(chan struct{})
	}
}

func (l *fakeLauncher) ended() (status int, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exited, l.exited >= 0
}

func (l *fakeLauncher) Status(context.Context) (guest.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	if s.Migration != nil {
		m := *s.Migration
		s.Migration = &m
	}
	return s, nil
}

func (l *fakeLauncher) Events(ctx context.Context, after int) iter.Seq2[guest.Event, error] {
	return func(yield func(guest.Event, error) bool) {
		for {
			l.mu.Lock()
			events, news, exited := l.events[min(after, len(l.events)):], l.news, l.exited >= 0
			l.mu.Unlock()
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Seq
			}
			if len(events) > 0 {
				continue
			}
			if exited {
				yield(guest.Event{}, io.EOF)
				return
			}
			select {
			case <-ctx.Done():
				yield(guest.Event{}, ctx.Err())
				return
			case <-news:
			}
		}
	}
}

func (l *fakeLauncher) Plumb(_ context.Context, nics []guest.NIC) ([]guest.Plumbed, error) {
	l.change(func() {
		l.status.NICs = nil
		for _, n := range nics {
			if n.MAC == "" {
				n.MAC = "0a:58:0a:f4:00:05"
			}
			l.status.NICs = append(l.status.NICs, guest.Plumbed{NIC: n, Plugged: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.0.5/16")}})
		}
	}, guest.Event{Type: guest.PlumbingDone})
	return l.status.NICs, nil
}

func (l *fakeLauncher) Start(context.Context, guest.Domain) error {
	l.change(func() { l.status.State = guest.Running }, guest.Event{Type: guest.QEMUStarted})
	l.change(func() {}, guest.Event{Type: guest.Resumed})
	return nil
}

func (l *fakeLauncher) Incoming(_ context.Context, _ guest.Domain, in guest.Incoming) error {
	l.change(func() {
		l.status.State, l.in = guest.Receiving, in
		for _, network := range in.Later {
			l.setPlugged(network, false)
		}
	}, guest.Event{Type: guest.QEMUStarted})
	return nil
}

// setPlugged is called with l locked.
func (l *fakeLauncher) setPlugged(network string, plugged bool) {
	l.status.NICs = slices.Clone(l.status.NICs)
	for i := range l.status.NICs {
		if l.status.NICs[i].Name == network {
			l.status.NICs[i].Plugged = plugged
		}
	}
}

func (l *fakeLauncher) Plug(_ context.Context, network string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setPlugged(network, true)
	return nil
}

func (l *fakeLauncher) Unplug(_ context.Context, network string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setPlugged(network, false)
	return nil
}

func (l *fakeLauncher) moved(s guest.MigrationStatus) {
	l.change(func() { l.status.Migration = &guest.MigrationInfo{Status: s} }, guest.Event{Type: guest.MigrationChanged, Status: s})
}

func (l *fakeLauncher) Migrate(_ context.Context, m guest.Migration) error {
	l.mu.Lock()
	target := l.relay.target
	l.cancel, l.goOn = make(chan struct{}, 1), make(chan struct{}, 1)
	l.mu.Unlock()
	l.moved(guest.Active)
	target.moved(guest.Active)
	go l.migrate(m, target)
	return nil
}

// migrate does what QEMU does between the order and its end.
func (l *fakeLauncher) migrate(m guest.Migration, target *fakeLauncher) {
	select {
	case <-l.cancel:
		l.moved(guest.Cancelled)
		return
	case <-time.After(l.all.copying):
	}
	if _, dead := target.ended(); dead {
		l.moved(guest.Failed)
		return
	}
	l.change(func() { l.status.State = guest.Paused }, guest.Event{Type: guest.Stopped})
	if m.HoldBeforeSwitchover {
		l.moved(guest.PreSwitchover)
		select {
		case <-l.goOn:
		case <-l.cancel:
			l.change(func() { l.status.State = guest.Running }, guest.Event{Type: guest.Resumed})
			l.moved(guest.Cancelled)
			return
		}
		if _, dead := target.ended(); dead {
			l.change(func() { l.status.State = guest.Running }, guest.Event{Type: guest.Resumed})
			l.moved(guest.Failed)
			return
		}
	}
	l.change(func() {
		l.status.State, l.status.Migration = guest.Migrated, &guest.MigrationInfo{Status: guest.Completed}
	}, guest.Event{Type: guest.MigrationChanged, Status: guest.Completed})
	if target.in.HoldResume {
		target.change(func() {
			target.status.State, target.status.Migration = guest.Paused, &guest.MigrationInfo{Status: guest.Completed}
		}, guest.Event{Type: guest.MigrationChanged, Status: guest.Completed})
		return
	}
	target.moved(guest.Completed)
	target.change(func() { target.status.State = guest.Running }, guest.Event{Type: guest.Resumed})
	if target.in.KillOn == guest.Resumed {
		target.exit(target.in.FailStatus)
	}
}

func (l *fakeLauncher) ContinueMigration(context.Context) error { l.goOn <- struct{}{}; return nil }

func (l *fakeLauncher) StartPostCopy(context.Context) error {
	l.moved(guest.PostCopyActive)
	return nil
}

func (l *fakeLauncher) CancelMigration(context.Context) error { l.cancel <- struct{}{}; return nil }

func (l *fakeLauncher) Pause(context.Context) error {
	l.change(func() { l.status.State = guest.Paused }, guest.Event{Type: guest.Stopped})
	return nil
}

func (l *fakeLauncher) Resume(context.Context) error {
	l.change(func() { l.status.State = guest.Running }, guest.Event{Type: guest.Resumed})
	return nil
}

func (l *fakeLauncher) Shutdown(context.Context) error {
	l.change(func() {}, guest.Event{Type: guest.Off})
	l.exit(0)
	return nil
}

func (l *fakeLauncher) Leave(context.Context) error { l.exit(0); return nil }

func (l *fakeLauncher) Kill(context.Context) error {
	status := 1
	if l.in.KillOn == "" && l.status.State == guest.Receiving {
		status = l.in.FailStatus
	}
	l.exit(status)
	return nil
}

func (l *fakeLauncher) Close() {}

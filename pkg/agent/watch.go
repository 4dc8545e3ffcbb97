package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// unknownTimeout is for how long a migration is watched that the API server does not show.
const unknownTimeout = 10 * time.Minute

// launcher is the pod that carries the VM on this side.
type launcher struct {
	key types.NamespacedName
	uid types.UID
}

// watch is one side of one migration, from its preparation to its end.
type watch struct {
	o        *observer
	key      watchKey
	launcher launcher
	log      *slog.Logger
	changed  chan struct{}
	readers  sync.WaitGroup
	began    time.Time
	// started belongs to the observer's loop.
	started bool

	mu     sync.Mutex
	taps   map[ident.PortName]*tap
	closed bool
	// replaced: another launcher is the migration's target now.
	replaced bool

	// The rest belongs to run.

	// known: the API server has shown the migration. ended is when it was seen to be over, ready when the VM was seen to run in the launcher.
	known        bool
	ended, ready time.Time
	// guarded: the source's hypervisor is listened to. courier hands the VM's connections over from here; nil if nobody does.
	guarded bool
	courier *courier
	// written is what was reported last, retry when a report that failed is tried again; reported: what was seen is in it, and only the end may still come.
	written  *v1alpha1.Observation
	retry    time.Time
	reported bool

	// reception is what was taken of the VM's connections here.
	reception reception
}

func newWatch(o *observer, key watchKey, l launcher) *watch {
	return &watch{
		o: o, key: key, launcher: l, log: o.log.With("migration", key.migration, "side", key.side, "pod", l.key.String()),
		changed: make(chan struct{}, 1), began: time.Now(), taps: map[ident.PortName]*tap{},
	}
}

// poke asks for another step; it never blocks.
func (w *watch) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// replace ends the watch without a report.
func (w *watch) replace() {
	w.mu.Lock()
	w.replaced = true
	w.mu.Unlock()
	w.poke()
}

func (w *watch) isReplaced() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.replaced
}

// run ends when the migration is over and reported, when it is gone, or with ctx.
func (w *watch) run(ctx context.Context) {
	w.log.Info("migration observed")
	w.o.metrics.observed.WithLabelValues(string(w.key.side)).Inc()
	defer w.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop() // before w.close, which waits for all that goes on beside
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.close() // so that what the readers have in hand is told too
			w.leave(ctx)
			return
		case <-w.changed:
		case <-timer.C:
		}
		again, done := w.step(ctx)
		if done {
			return
		}
		timer.Reset(again)
	}
}

// step reads everything again and does what is due. It is to be called again after an event, or after so long.
func (w *watch) step(ctx context.Context) (again time.Duration, done bool) {
	pm := w.o.migrations.get(w.key)
	switch {
	case w.isReplaced():
		return 0, true
	case pm != nil:
		w.known = true
		if pm.Status.Over() && w.ended.IsZero() {
			w.ended = time.Now()
		}
	case w.known || time.Since(w.began) > unknownTimeout || w.detached():
		w.log.Info("migration is gone", "known", w.known)
		return 0, true
	}
	if err := w.find(ctx, pm); err != nil {
		w.log.Warn("frames of a migration are not seen; it goes on without", "error", err)
	}
	w.read(ctx)
	w.guard(ctx, pm)
	w.settle(ctx, pm)
	mend := w.mend(ctx, pm)
	announce := w.announce(pm)
	report, done := w.reportDue(ctx, pm)
	again = unknownTimeout
	for _, d := range []time.Duration{announce, report, mend} {
		if d > 0 {
			again = min(again, d)
		}
	}
	return again, done && (mend == 0 || w.ended.IsZero()) // who ends gives no port back
}

// find begins to see frames at those of the migration's ports that have a link here and are not looked at yet.
func (w *watch) find(ctx context.Context, pm *v1alpha1.PortMigration) error {
	if pm == nil || !w.ended.IsZero() || w.complete(pm) {
		return nil
	}
	db, err := w.o.node.database(ctx)
	if err != nil {
		return err
	}
	have, err := db.PodPorts(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, want := range pm.Spec.Ports {
		i := slices.IndexFunc(have, func(p ovs.PortStatus) bool {
			return string(p.ID) == want.Name && p.Owner.Pod == w.launcher.key.String()
		})
		if i < 0 || w.tap(ident.PortName(want.Name)) != nil {
			continue // ADD will tell of it, or has
		}
		errs = append(errs, w.open(have[i].Port))
		if t := w.tap(ident.PortName(want.Name)); t != nil {
			t.update(func(s *sighting) { s.late, s.withdrawn = w.mayRun(pm), have[i].Withdrawn })
		}
	}
	return errors.Join(errs...)
}

func (w *watch) complete(pm *v1alpha1.PortMigration) bool {
	for _, p := range pm.Spec.Ports {
		if w.tap(ident.PortName(p.Name)) == nil {
			return false
		}
	}
	return true
}

// mayRun: the VM runs on this side, or may.
func (w *watch) mayRun(pm *v1alpha1.PortMigration) bool {
	return w.key.side == sideSource || w.isReady() || reached(pm, v1alpha1.StageActivated) || reached(pm, v1alpha1.StageCommitted)
}

// isReady notes when the VM was first seen to run in the launcher, and reports whether it has been.
func (w *watch) isReady() bool {
	if pod := w.o.inputs.pod(w.launcher.key.String()); w.ready.IsZero() && pod != nil && pod.UID == w.launcher.uid && isReady(pod) {
		w.ready = time.Now()
		w.log.Info("VM is ready on the target")
	}
	return !w.ready.IsZero()
}

// announce sends RARPs on the pod's side of those links where the VM, which is ready, has sent none. OVN opens a port by them, and they tell switches where the VM is.
func (w *watch) announce(pm *v1alpha1.PortMigration) (again time.Duration) {
	if w.key.side != sideTarget || !w.isReady() || pm != nil && announced(pm) {
		return 0
	}
	for _, t := range w.list() {
		at, want := t.announceAt(w.ready)
		if want && !time.Now().Before(at) {
			w.send(t)
			at, want = t.announceAt(w.ready)
		}
		if want {
			if d := max(time.Until(at), time.Millisecond); again == 0 || d < again {
				again = d
			}
		}
	}
	return again
}

// announced: nobody needs to announce the VM any more.
func announced(pm *v1alpha1.PortMigration) bool {
	return pm.Status.Over() || reached(pm, v1alpha1.StageActivated) || reached(pm, v1alpha1.StageCommitted) || pm.Status.Target != nil && pm.Status.Target.Announced != nil
}

func (w *watch) send(t *tap) {
	first := false
	t.update(func(s *sighting) {
		if first = s.sends == 0; first {
			s.sent = time.Now()
		}
		s.sends++
	})
	if first {
		w.log.Info("VM has not announced itself: doing it", "port", t.port.ID, "after", announceAfter)
	}
	if err := w.say(t, frame.RARP(t.mac)); err != nil {
		w.log.Warn("VM could not be announced: until OVN hears of it, its port is closed here", "port", t.port.ID, "error", err)
	}
}

// list is the taps in order of their ports.
func (w *watch) list() []*tap {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*tap, 0, len(w.taps))
	for _, name := range slices.Sorted(maps.Keys(w.taps)) {
		out = append(out, w.taps[name])
	}
	return out
}

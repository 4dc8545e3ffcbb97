package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

const (
	// withdrawTimeout bounds the local database's part in a port that is taken away from OVN, or given back.
	withdrawTimeout = 5 * time.Second
	// A port that was given back is blocked anew, and opened by a RARP as soon as OVN has it again.
	reopenings  = 20
	reopenAgain = 250 * time.Millisecond
)

var errRunsHere = errors.New("the VM runs on the target already")

// openPorts opens those of these ports that the migration has here. A port that is open already stays so.
func (w *watch) openPorts(ctx context.Context, names []string) error {
	taps := w.named(names)
	if len(taps) == 0 {
		return errors.New("none of the ports has a link on the target yet")
	}
	var errs []error
	for _, t := range taps {
		errs = append(errs, w.openPort(ctx, t))
	}
	w.poke()
	return errors.Join(errs...)
}

// named are the taps of ports, of the PortMigration's alone: nobody else's are looked at.
func (w *watch) named(names []string) []*tap {
	return slices.DeleteFunc(w.list(), func(t *tap) bool { return !slices.Contains(names, string(t.port.ID)) })
}

func (w *watch) openPort(ctx context.Context, t *tap) error {
	s := t.sighting()
	switch {
	case s.withdrawn: // the migration goes on after all
		return w.restore(ctx, t)
	case s.heard() || !s.opened.IsZero():
		return nil
	}
	t.update(func(s *sighting) { s.opened = time.Now() })
	if err := w.say(t, frame.Opening(t.mac)); err != nil {
		t.update(func(s *sighting) { s.opened = time.Time{} })
		return fmt.Errorf("open port %s: %w", t.port.ID, err)
	}
	if before, err := w.o.links.Sent(t.port.Name); err != nil { // nothing comes before OVN has opened the port, which takes longer
		w.log.Warn("frames for the VM are not counted", "port", t.port.ID, "error", err)
	} else {
		t.update(func(s *sighting) { s.before, s.counting = before, true })
	}
	w.o.metrics.switchovers.WithLabelValues(switchoverOpened).Inc()
	w.log.Info("port opened: the source has stopped the VM", "port", t.port.ID)
	return nil
}

// countQueued notes how many frames the VM was sent between the signal and now, when it was heard first.
func (w *watch) countQueued(t *tap, now sighting) {
	if now.opened.IsZero() || now.counted || !now.counting || !now.heard() {
		return
	}
	sent, err := w.o.links.Sent(t.port.Name)
	if err != nil {
		return // it is not told then
	}
	t.update(func(s *sighting) { s.queued, s.counted = frames(s.before, sent), true })
}

// frames is how many there were between two readings of a counter.
func frames(before, after uint64) int64 {
	if after < before { // the link was made anew
		return 0
	}
	return int64(after - before) //nolint:gosec // a counter of frames
}

// runsHere: the VM has been heard here, or KubeVirt says that it runs here.
func (w *watch) runsHere() bool {
	if pm := w.o.migrations.get(w.key); pm != nil && (reached(pm, v1alpha1.StageReady) || reached(pm, v1alpha1.StageCommitted)) {
		return true
	}
	pod := w.o.inputs.pod(w.launcher.key.String())
	return pod != nil && pod.UID == w.launcher.uid && isReady(pod) || slices.ContainsFunc(w.list(), func(t *tap) bool { s := t.sighting(); return s.heard() })
}

// withdraw takes ports away from OVN here: the VM goes on where it was, and nothing that is meant for it has business here.
func (w *watch) withdraw(ctx context.Context, names []string) error {
	if w.runsHere() {
		return errRunsHere
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	db, err := w.o.node.database(ctx)
	if err != nil {
		return err
	}
	if err := w.o.switchover.handoff.clean(ctx, w); err != nil { // before OVN gives the zones up
		w.log.Warn("connections of a VM that does not come are left until they end by themselves", "error", err)
	}
	var errs []error
	for _, t := range w.named(names) {
		if s := t.sighting(); s.withdrawn {
			continue
		}
		if err := db.Withdraw(ctx, t.port.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		t.update(func(s *sighting) { s.withdrawn = true })
		w.o.metrics.switchovers.WithLabelValues(switchoverWithdrawn).Inc()
		w.log.Info("port taken away from OVN here: the VM goes on where it was", "port", t.port.ID)
	}
	return errors.Join(errs...)
}

// restore gives a port back to OVN: the VM comes after all. RARPs open it as soon as OVN has it.
func (w *watch) restore(ctx context.Context, t *tap) error {
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	db, err := w.o.node.database(ctx)
	if err != nil {
		return err
	}
	if err := db.Restore(ctx, t.port.Name); err != nil {
		return err
	}
	t.update(func(s *sighting) { s.withdrawn, s.reopen = false, reopenings })
	if s := w.o.switchover; s != nil {
		s.handoff.resume(w)
	}
	w.o.metrics.switchovers.WithLabelValues(switchoverRestored).Inc()
	w.log.Info("port given back to OVN here: the VM comes after all", "port", t.port.ID)
	w.poke()
	return nil
}

// mend puts right what signals have left: a port that was taken away, and whose VM runs here all the same, also when the migration is over; one that is open, and of whose VM nobody hears.
func (w *watch) mend(ctx context.Context, pm *v1alpha1.PortMigration) (again time.Duration) {
	if w.key.side != sideTarget || pm == nil || pm.Status.Result == v1alpha1.MigrationFailed {
		return 0
	}
	over := pm.Status.Over()
	runs := over || w.runsHere()
	for _, t := range w.list() {
		s := t.sighting()
		switch {
		case s.withdrawn && runs:
			switch err := w.restore(ctx, t); {
			case over && errors.Is(err, ovs.ErrNoPort): // its pod has gone too
				t.update(func(s *sighting) { s.withdrawn = false })
			case err != nil:
				w.log.Warn("port could not be given back to OVN: its VM runs here and is not reached", "port", t.port.ID, "error", err, "retry_in", reopenAgain)
			}
			again = sooner(again, reopenAgain)
		case s.reopen > 0:
			t.update(func(s *sighting) { s.reopen-- })
			if err := w.say(t, frame.Opening(t.mac)); err != nil {
				w.log.Warn("port could not be opened again", "port", t.port.ID, "error", err)
			}
			again = sooner(again, reopenAgain)
		case s.opened.IsZero() || s.withdrawn || runs:
		case time.Since(s.opened) < openTimeout:
			again = sooner(again, max(time.Until(s.opened.Add(openTimeout)), time.Millisecond))
		default:
			w.log.Warn("nothing was heard of a VM that was stopped on the source", "port", t.port.ID, "for", openTimeout)
			if err := w.withdraw(ctx, []string{string(t.port.ID)}); err != nil {
				w.log.Warn("port could not be taken away from OVN", "port", t.port.ID, "error", err, "retry_in", openTimeout)
				again = sooner(again, openTimeout)
			}
		}
	}
	if s := w.o.switchover; s != nil {
		again = sooner(again, s.handoff.bringBack(ctx, w))
	}
	return again
}

package agent

import (
	"cmp"
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
)

const (
	// reportTimeout bounds one write, reportRetry is the time to the next after a failure, and after reportGiveUp there is none: what was seen is in the log.
	reportTimeout = 10 * time.Second
	reportRetry   = 5 * time.Second
	reportGiveUp  = 10 * time.Minute
	// leaveTimeout bounds the last write of an agent that ends.
	leaveTimeout = 2 * time.Second
)

// reportDue writes what was seen when it is time to. done: there will be no more to write.
func (w *watch) reportDue(ctx context.Context, pm *v1alpha1.PortMigration) (again time.Duration, done bool) {
	if pm == nil {
		return 0, false
	}
	c := course{side: w.key.side, reported: w.reported, ended: w.ended}
	c.heard = reached(pm, v1alpha1.StageCommitted) || pm.Status.Target != nil && (pm.Status.Target.Announced != nil || pm.Status.Target.FirstFrame != nil)
	c.ports = w.sightings()
	now := time.Now()
	yes, again := c.due(now)
	regular := yes
	if !yes && pressing(w.before(pm).Connections, w.connections()) {
		yes = true
	}
	if !yes {
		return again, false
	}
	if now.Before(w.retry) {
		return w.retry.Sub(now), false
	}
	o, news := w.news(pm, c.ports)
	if !news {
		w.reported = w.reported || regular
		return again, !w.ended.IsZero()
	}
	if !regular {
		o.LastFrame = w.before(pm).LastFrame // what was seen so far is not the last: the interruption would be measured from it
	}
	gone, err := w.write(ctx, pm, o)
	if err != nil {
		w.log.Warn("observation of a migration could not be written", "error", err, "retry_in", reportRetry)
		w.retry = now.Add(reportRetry)
		return reportRetry, !w.ended.IsZero() && now.Sub(w.ended) > reportGiveUp
	}
	w.written, w.reported = &o, w.reported || regular
	return again, gone || !w.ended.IsZero()
}

// before is what was reported last, by this agent or the one before it.
func (w *watch) before(pm *v1alpha1.PortMigration) v1alpha1.Observation {
	if o := cmp.Or(w.written, observation(pm, w.key.side)); o != nil {
		return *o
	}
	return v1alpha1.Observation{}
}

// connections is what is known of their hand-over on this side; nil if there is none.
func (w *watch) connections() *v1alpha1.Connections {
	if w.key.side == sideTarget {
		return w.reception.connections()
	}
	if w.courier == nil {
		return nil
	}
	return w.courier.connections()
}

// news is what was seen in all, and whether that is more than was reported.
func (w *watch) news(pm *v1alpha1.PortMigration, ports []sighting) (o v1alpha1.Observation, news bool) {
	before := w.written
	if before == nil {
		before = observation(pm, w.key.side)
	}
	now := observe(w.key.side, ports)
	now.Connections = w.connections()
	o = merge(before, now)
	return o, !same(o, v1alpha1.Observation{}) && (before == nil || !same(o, *before))
}

// leave reports what was seen when the agent ends before the migration does: the next one goes on from there.
func (w *watch) leave(ctx context.Context) {
	pm := w.o.migrations.get(w.key)
	if pm == nil {
		return
	}
	o, news := w.news(pm, w.sightings())
	if !news {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if _, err := w.write(ctx, pm, o); err != nil {
		w.log.Warn("observation of a migration is lost: the agent ends before it could be written", "error", err)
	}
}

// sightings are what was seen at each port.
func (w *watch) sightings() (out []sighting) {
	for _, t := range w.list() {
		out = append(out, t.sighting())
	}
	return out
}

// write reports. gone: there is no such migration any more.
func (w *watch) write(ctx context.Context, pm *v1alpha1.PortMigration, o v1alpha1.Observation) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	clock, err := frame.ReadClock()
	if err != nil {
		return false, err
	}
	o.Clock = v1alpha1.Clock{BootID: clock.BootID, Synchronized: clock.Synchronized}
	if clock.Synchronized {
		o.Clock.MaxErrorMicroseconds = clock.MaxError.Microseconds()
	}
	part := v1alpha1.PortMigrationStatus{Target: &o}
	if w.key.side == sideSource {
		part = v1alpha1.PortMigrationStatus{Source: &o}
	}
	err = w.o.report(ctx, types.NamespacedName{Namespace: pm.Namespace, Name: pm.Name}, part)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("PortMigration %s/%s: write status.%s: %w", pm.Namespace, pm.Name, w.key.side, err)
	}
	w.log.Info("migration reported", "portmigration", pm.Namespace+"/"+pm.Name, "attached", o.Attached, "last_frame", o.LastFrame, "announced", o.Announced,
		"by_agent", o.AnnouncedByAgent, "first_frame", o.FirstFrame, "frames_before", o.FramesBeforeAnnouncement,
		"activated_by", o.ActivatedBy)
	return false, nil
}

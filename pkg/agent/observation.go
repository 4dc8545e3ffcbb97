package agent

import (
	"cmp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
)

// side is which end of a migration a node is. Its text is the field of PortMigration's status that the node's agent writes.
type side string

const (
	sideSource side = "source"
	sideTarget side = "target"
)

const (
	// silence is for how long the source's link must be quiet before the last frame on it is taken for the VM's last.
	silence = 300 * time.Millisecond
	// patience is how long is waited for what may not come: the first frame of a VM that has nothing to say, the end of frames on a source whose VM goes on.
	patience = time.Second
)

// sighting is what was seen at one port's link. A zero time: not, so far.
type sighting struct {
	// attached is when OVN had installed the port, last the last frame, announced the first RARP, first the first other frame after that.
	attached, last, announced, first time.Time
	// early counts the frames before the announcement, earliest is the first of them.
	early    int64
	earliest frame.Seen
	// sent is when the agent first announced the VM itself, sends how often it has; byAgent: no announcement was seen before.
	sent    time.Time
	sends   int
	byAgent bool
	// late: the VM may have run here before anybody looked, so that the first frame seen need not be its first.
	late bool
	// stopped is when the hypervisor told that the VM was stopped here, lost what was sent to it from then on until the target's agent had answered; counted: lost is known. Source only.
	stopped time.Time
	lost    int64
	// opened is when the agent opened the port on the source's signal, before what the link had been sent by then, queued what it was sent from then on until the VM was heard. Target only.
	opened  time.Time
	before  uint64
	queued  int64
	counted bool
	// counting: before is known.
	counting bool
	// blocked: OVN drops what the VM sends here. unblocked is when it ceased to; zero while it has not, or that is not known. Target only.
	blocked   bool
	unblocked time.Time
	// withdrawn: the agent has taken the port away from OVN. reopen is how many more RARPs are to open one that was given back.
	withdrawn bool
	reopen    int
}

// heard: a frame of the VM's got through.
func (s *sighting) heard() bool { return !s.announced.IsZero() && !s.byAgent || !s.first.IsZero() }

// add takes a frame in and reports whether it is news: the first of its kind.
func (s *sighting) add(f frame.Seen) (news bool) {
	if f.Ours {
		return false
	}
	s.last = f.At
	if f.RARP {
		if !s.announced.IsZero() {
			return false
		}
		s.announced, s.byAgent = f.At, !s.sent.IsZero() && !f.At.Before(s.sent)
		return true
	}
	if s.late {
		return false
	}
	if s.announced.IsZero() && (s.opened.IsZero() || f.At.Before(s.opened)) {
		if s.early++; s.early == 1 { // and OVN drops it
			s.earliest = f
		}
		return false
	}
	if !s.first.IsZero() {
		return false
	}
	s.first = f.At
	return true
}

// observe sums up what was seen at all ports of one side; times are those of the port for which it happened last.
func observe(s side, ports []sighting) v1alpha1.Observation {
	var o v1alpha1.Observation
	if s == sideSource {
		o.LastFrame, _ = latest(ports, func(p sighting) time.Time { return p.last })
		o.Stopped, _ = latest(ports, func(p sighting) time.Time { return p.stopped })
		o.FramesLost = summed(ports, func(p sighting) int64 { return p.lost })
		return o
	}
	var all bool
	if o.Attached, all = latest(ports, func(p sighting) time.Time { return p.attached }); !all {
		o.Attached = nil
	}
	if o.Announced, all = latest(ports, func(p sighting) time.Time { return p.announced }); !all {
		o.Announced = nil
	}
	o.FirstFrame, _ = latest(ports, func(p sighting) time.Time { return p.first })
	if o.Opened, all = latest(ports, func(p sighting) time.Time { return p.opened }); !all {
		o.Opened = nil
	}
	switch {
	case o.Opened != nil:
		o.ActivatedBy, o.FramesQueued = v1alpha1.ActivatedBySignal, summed(ports, func(p sighting) int64 { return p.queued })
	case o.Announced != nil:
		o.ActivatedBy = v1alpha1.ActivatedByRARP
	}
	if o.ActivatedBy != "" { // without a RARP it was no activation that ended the block
		if o.Unblocked, all = latest(ports, func(p sighting) time.Time { return p.unblocked }); !all {
			o.Unblocked = nil
		}
	}
	for _, p := range ports {
		o.AnnouncedByAgent = o.AnnouncedByAgent || p.byAgent
		o.FramesBeforeAnnouncement += p.early
	}
	return o
}

// summed is the sum over the ports, nil if it is not known of all.
func summed(ports []sighting, of func(sighting) int64) *int64 {
	if len(ports) == 0 {
		return nil
	}
	var sum int64
	for _, p := range ports {
		if !p.counted {
			return nil
		}
		sum += of(p)
	}
	return &sum
}

// latest is the last of the ports' times, nil if none has one; all: every port has one.
func latest(ports []sighting, of func(sighting) time.Time) (at *metav1.MicroTime, all bool) {
	all = true
	for _, p := range ports {
		switch t := of(p); {
		case t.IsZero():
			all = false
		case at == nil || t.After(at.Time):
			at = &metav1.MicroTime{Time: t.Truncate(time.Microsecond)} // as the API keeps it
		}
	}
	return at, all
}

// observation is what was reported of a side, nil if nothing was.
func observation(pm *v1alpha1.PortMigration, s side) *v1alpha1.Observation {
	if s == sideSource {
		return pm.Status.Source
	}
	return pm.Status.Target
}

// merge adds what is seen now to what was reported before, by an agent that was restarted since: first times stay as they were, the last frame's moves on.
func merge(before *v1alpha1.Observation, now v1alpha1.Observation) v1alpha1.Observation {
	if before == nil {
		return now
	}
	if before.Attached != nil {
		now.Attached = before.Attached
	}
	if before.Announced != nil {
		now.Announced, now.AnnouncedByAgent = before.Announced, before.AnnouncedByAgent
	}
	if before.FirstFrame != nil {
		now.FirstFrame = before.FirstFrame
	}
	if before.Stopped != nil {
		now.Stopped, now.FramesLost = before.Stopped, cmp.Or(before.FramesLost, now.FramesLost)
	}
	if before.Opened != nil {
		now.Opened, now.FramesQueued = before.Opened, cmp.Or(before.FramesQueued, now.FramesQueued)
	}
	if now.Unblocked == nil {
		now.Unblocked = before.Unblocked
	}
	if before.ActivatedBy != "" {
		now.ActivatedBy = before.ActivatedBy
	}
	if before.LastFrame != nil && (now.LastFrame == nil || now.LastFrame.Before(before.LastFrame)) {
		now.LastFrame = before.LastFrame
	}
	now.FramesBeforeAnnouncement = max(now.FramesBeforeAnnouncement, before.FramesBeforeAnnouncement)
	now.Connections = mergeConnections(before.Connections, now.Connections)
	return now
}

// same reports whether two observations tell the same, whatever the clocks are now.
func same(a, b v1alpha1.Observation) bool {
	return a.Attached.Equal(b.Attached) && a.LastFrame.Equal(b.LastFrame) && a.Announced.Equal(b.Announced) && a.FirstFrame.Equal(b.FirstFrame) &&
		a.AnnouncedByAgent == b.AnnouncedByAgent && a.FramesBeforeAnnouncement == b.FramesBeforeAnnouncement &&
		a.Stopped.Equal(b.Stopped) && equal(a.FramesLost, b.FramesLost) && a.ActivatedBy == b.ActivatedBy && a.Opened.Equal(b.Opened) && equal(a.FramesQueued, b.FramesQueued) &&
		a.Unblocked.Equal(b.Unblocked) &&
		sameConnections(a.Connections, b.Connections)
}

func equal(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

// course is how far one side's watch has come.
type course struct {
	side  side
	ports []sighting
	// heard: the network has heard the VM on the target, so that the source's part is over.
	heard bool
	// reported: what was seen was written already, and only the end is still to be.
	reported bool
	// ended is when the migration was seen to be over; zero while it is not.
	ended time.Time
}

// due says whether it is time to report. If not, it is to be asked again after so long, 0: after the next event.
func (c course) due(now time.Time) (yes bool, again time.Duration) {
	if c.ended.IsZero() && c.reported {
		return false, 0
	}
	o := observe(c.side, c.ports)
	var until time.Time
	switch {
	case c.side == sideSource && !c.heard && c.ended.IsZero():
		return false, 0
	case c.ended.IsZero() && slices.ContainsFunc(c.ports, func(p sighting) bool { return p.blocked }):
		return false, 0 // the end of the block is news
	case c.side == sideSource && o.LastFrame == nil, o.Announced != nil && o.FirstFrame != nil:
		return true, 0
	case c.side == sideSource:
		until = o.LastFrame.Add(silence)
	case o.Announced != nil:
		until = o.Announced.Add(patience)
	case o.Opened != nil && o.FirstFrame != nil: // of a VM whose own announcement does not leave the pod
		until = o.FirstFrame.Add(patience)
	case c.ended.IsZero():
		return false, 0
	default:
		until = c.ended.Add(patience)
	}
	if end := c.ended.Add(patience); !c.ended.IsZero() && end.Before(until) {
		until = end
	}
	if !now.Before(until) {
		return true, 0
	}
	return false, until.Sub(now)
}

// Announcements that the agent makes when a VM makes none: the first so long after the VM is ready, and as many in all.
const (
	announceAfter = 100 * time.Millisecond
	announcements = 5
)

// announceAgain is when they are made after the first.
func announceAgain() [announcements]time.Duration {
	return [announcements]time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond, 350 * time.Millisecond}
}

// announceAt is when the agent has to announce the VM the next time; ok is false if it has not to.
func (s *sighting) announceAt(ready time.Time) (at time.Time, ok bool) {
	if !s.announced.IsZero() && !s.byAgent || s.sends >= announcements {
		return time.Time{}, false
	}
	return ready.Add(announceAfter + announceAgain()[s.sends]), true
}

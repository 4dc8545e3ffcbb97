// Package timeline draws one live migration: as text, a line for each stage, and as a picture. It is pure: what it draws is passed in, and the same input gives
// the same output, byte for byte.
package timeline

import (
	"slices"
	"time"
)

// Actor is who did something. Each has a lane in the picture; those that are not named here come after these.
type Actor string

// Actors, in the order of their lanes.
const (
	KubeVirt   Actor = "KubeVirt"
	Controller Actor = "controller"
	OVN        Actor = "OVN"
	Agent      Actor = "agent"
	QEMU       Actor = "QEMU"
)

// Migration is what is drawn. All times are of one clock.
type Migration struct {
	// VM is the VM's name, Address what it is reached at, Source and Target are nodes.
	VM, Address, Source, Target string
	// Zero is what times are printed relative to; the first stage if it is zero, or, without stages, the first of what probes say.
	Zero   time.Time
	Stages []Stage
	// Stopped and Resumed are QEMU's: the VM's CPUs stood still in between. Both zero if that is not known. They need not be stages.
	Stopped, Resumed time.Time
	// Directions are what probes say, at most two are drawn.
	Directions []Direction
	// Throughput of the bulk streams; at most two are drawn, the first upwards, the second downwards.
	Throughput  []Series
	Connections Connections
}

// Stage is something that happened.
type Stage struct {
	At    time.Time
	Actor Actor
	// Name is short, "target attached". Detail is for the text alone.
	Name, Detail string
}

// Direction are the probes one way, or there and back.
type Direction struct {
	// Name says which, "to the VM and back".
	Name string
	// Interval is between two probes: what is found is no finer.
	Interval time.Duration
	// Arrivals are the first arrivals, by the clock of where they were measured, in any order.
	Arrivals []time.Time
	// Missing are when the probes were sent that did not arrive, where the sender's clock is known.
	Missing                           []time.Time
	Sent, Lost, Duplicated, Reordered int
	// From and To are the last arrival before the longest time without one, and the first after it.
	From, To time.Time
	// Open means that nothing has arrived after From.
	Open bool
	// Paused is for how long the sender itself did not send in that time, by its own clock. Beyond twice the interval it is named.
	Paused time.Duration
	// Quiet is the longest silence while nothing was done, and Elsewhere the longest in the whole migration; zero if not known. They tell how much of the silence is
	// the machine's.
	Quiet, Elsewhere time.Duration
}

// Silence is the longest time without an arrival.
func (d *Direction) Silence() time.Duration { return d.To.Sub(d.From) }

// Series is throughput over time.
type Series struct {
	Name   string
	Start  time.Time
	Bucket time.Duration
	// Bytes in each bucket.
	Bytes []int64
}

// Connections are those that were held during the migration.
type Connections struct {
	Total, Kept int
	// Stall is the longest time that one of those kept made no progress; zero if that is not known.
	Stall time.Duration
}

// Unanswered is the time in which those probes were sent that were lost in the silence, to an interval more than it was: what was sent later was answered, however
// late. Zero if none was lost, or the sender's clock is not known.
func (d *Direction) Unanswered() time.Duration {
	var first, last time.Time
	for _, t := range d.Missing {
		if t.Before(d.From.Add(-d.Interval)) || t.After(d.To) {
			continue
		}
		if first.IsZero() || t.Before(first) {
			first = t
		}
		if t.After(last) {
			last = t
		}
	}
	if first.IsZero() {
		return 0
	}
	return last.Sub(first) + d.Interval
}

// notes say what else has to be known of the silence.
func (d *Direction) notes() []string {
	var all []string
	if d.Paused > 2*d.Interval {
		all = append(all, "the sender itself paused for "+millis(d.Paused)+" ms")
	}
	if d.Open {
		all = append(all, "and none since")
	}
	return all
}

// Stop is how long QEMU had stopped the VM; zero if that is not known.
func (m *Migration) Stop() time.Duration {
	if m.Stopped.IsZero() || m.Resumed.IsZero() {
		return 0
	}
	return m.Resumed.Sub(m.Stopped)
}

// Beyond is how much longer the VM was silent in a direction than QEMU had stopped it: the network's part. Below zero it was less, which the probes' interval
// allows.
func (m *Migration) Beyond(d *Direction) time.Duration { return d.Silence() - m.Stop() }

// Interruption is the direction in which the VM was silent for longest; nil without probes.
func (m *Migration) Interruption() *Direction {
	var worst *Direction
	for i := range m.Directions {
		if d := &m.Directions[i]; worst == nil || d.Silence() > worst.Silence() {
			worst = d
		}
	}
	return worst
}

// totals are over all directions.
func (m *Migration) totals() (sent, lost, duplicated int) {
	for _, d := range m.Directions {
		sent, lost, duplicated = sent+d.Sent, lost+d.Lost, duplicated+d.Duplicated
	}
	return sent, lost, duplicated
}

// stages are those given, and QEMU's stop and resumption if they are known and not among them, by time.
func (m *Migration) stages() []Stage {
	all := slices.Clone(m.Stages)
	for _, s := range []Stage{{At: m.Stopped, Actor: QEMU, Name: "VM stopped"}, {At: m.Resumed, Actor: QEMU, Name: "VM resumed"}} {
		known := slices.ContainsFunc(all, func(o Stage) bool { return o.Actor == QEMU && o.At.Equal(s.At) })
		if !s.At.IsZero() && !known {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b Stage) int { return a.At.Compare(b.At) })
	return all
}

// zero is what times are relative to.
func (m *Migration) zero() time.Time {
	if !m.Zero.IsZero() {
		return m.Zero
	}
	if all := m.stages(); len(all) > 0 {
		return all[0].At
	}
	if all := m.lines(); len(all) > 0 {
		return all[0].At
	}
	return time.Time{}
}

// actors are those that have stages, in the order of their lanes.
func actors(stages []Stage) []Actor {
	order := []Actor{KubeVirt, Controller, OVN, Agent, QEMU}
	for _, s := range stages {
		if !slices.Contains(order, s.Actor) {
			order = append(order, s.Actor)
		}
	}
	return slices.DeleteFunc(order, func(a Actor) bool {
		return !slices.ContainsFunc(stages, func(s Stage) bool { return s.Actor == a })
	})
}

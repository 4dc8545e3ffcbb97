package migration

import (
	"fmt"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Decide says in which phase a VM is and what its ports must be. It is total: every snapshot has a decision with a reason. It is
// idempotent: when Decision.Ports are applied, deciding again changes no port.
func Decide(s Snapshot, env Env) Decision {
	v := judge(s, env)
	v.baseline = env.Baseline
	d := Decision{
		Phase: v.phase, Reason: v.reason, Message: v.message, Migration: v.migration, Source: v.source, Target: v.target,
		Ports: make([]PortDecision, len(s.Ports)), RequeueAfter: v.requeue,
	}
	for i, p := range s.Ports {
		d.Ports[i] = PortDecision{Name: p.Name, Network: p.Network, Observed: p.State, Want: v.want(p)}
	}
	d.Attach = attach(v, d.Ports)
	return d
}

// Last is the migration that last asked for the VM's ports and is over, and how it ended: Committed or RolledBack. It is read from the rows, so that the
// outcome of a migration that ended while nobody looked is not lost. The phase is empty when none has ended since the VM was started, or while
// one is under way.
func (s Snapshot) Last() (Stamp, Phase) {
	var last Stamp
	var outcome Phase
	for _, p := range s.Ports {
		switch stamp := p.State.Stamp; {
		case isPair(p.State.Requested):
			return Stamp{}, ""
		case stamp.Migration == "":
		case p.State.Requested == string(stamp.Target), s.migration(stamp.Migration).Succeeded: // it may have gone on since
			last, outcome = stamp, Committed
		case p.State.Requested == string(stamp.Source):
			last, outcome = stamp, RolledBack
		}
	}
	return last, outcome
}

// verdict is a phase and what it asks of the ports.
type verdict struct {
	phase   Phase
	reason  Reason
	message string
	aim     aim
	// migration, source and target are set when two launchers are live, or one and the ports are still a pair.
	migration      string
	source, target Launcher
	// holder is the launcher that carries the VM.
	holder   Launcher
	requeue  time.Duration
	baseline Baseline
}

// aim is what a verdict does with the ports.
type aim int

const (
	keep   aim = iota // as they are
	none              // nobody may claim them
	single            // the holder's chassis
	pair              // source and target
	await             // those that are the wanted pair stay so, the others are the holder's until they all can be paired
	later             // the holder's chassis, though the target attaches: BaselineFlip
)

// judge finds the phase from what the API says, in order of how final the evidence is.
func judge(s Snapshot, env Env) verdict {
	if s.VMI == (VMI{}) {
		return verdict{phase: Stopped, reason: ReasonNoVMI, message: "there is no VirtualMachineInstance", aim: none}
	}
	if s.VMI.Finished {
		return verdict{phase: Stopped, reason: ReasonVMIFinished, message: fmt.Sprintf("VMI %s/%s has finished", s.VMI.Namespace, s.VMI.Name), aim: none}
	}
	var placed, gone []Launcher
	for _, l := range s.Launchers {
		if l.Chassis != "" {
			placed = append(placed, l)
		}
	}
	for _, l := range placed {
		if !usable(l.Chassis) {
			return unclear(ReasonUnknownChassis, fmt.Sprintf("pod %s is on a node named %q, which cannot be a chassis: rename the node", l.Name, l.Chassis))
		}
	}
	if placed, gone = standing(placed); len(placed) == 1 && len(gone) > 0 {
		return s.survivor(placed[0], gone, env)
	}
	switch len(placed) {
	case 0:
		if len(s.Launchers) > 0 {
			return verdict{phase: Stopped, reason: ReasonLauncherUnscheduled, message: fmt.Sprintf("launcher pod %s has no node yet", s.Launchers[0].Name), aim: none}
		}
		return verdict{phase: Stopped, reason: ReasonNoLauncher, message: fmt.Sprintf("VMI %s/%s has no live launcher pod", s.VMI.Namespace, s.VMI.Name), aim: none}
	case 1:
		return s.alone(placed[0], env)
	case 2:
		return s.both(placed[0], placed[1], env)
	}
	var names []string
	for _, l := range placed {
		names = append(names, l.Name+" on "+string(l.Chassis))
	}
	return unclear(ReasonTooManyLaunchers, fmt.Sprintf("VMI %s/%s has %d live launcher pods (%s), at most two were expected: "+
		"the ports stay as they are until all but two have finished; delete those that do not run the VM",
		s.VMI.Namespace, s.VMI.Name, len(placed), strings.Join(names, ", ")))
}

func unclear(reason Reason, message string) verdict {
	return verdict{phase: Unclear, reason: reason, message: message, aim: keep, requeue: requeueUnclear}
}

// usable: a name with a comma would be two chassis, and the reserved name is nobody's.
func usable(c ident.ChassisName) bool {
	return c != "" && c != ident.NoChassis && !strings.ContainsAny(string(c), ", \t\n")
}

// alone: one launcher is left, and whatever was under way, the VM can be nowhere else. Ports that are still a pair tell what has ended.
func (s Snapshot) alone(l Launcher, env Env) verdict {
	v := verdict{
		phase: Settled, reason: ReasonOneLauncher, aim: single, holder: l,
		message: fmt.Sprintf("pod %s carries the VM on %s", l.Name, l.Chassis),
	}
	if stamp, isPair := s.pairStamp(); isPair && stamp.Source != stamp.Target {
		m := s.migration(stamp.Migration)
		v.migration = stamp.Migration
		switch {
		case stamp.Target == l.Chassis && stamp.Migration == l.Job:
			v.target = l
			return s.targetAlone(m, v)
		case stamp.Source == l.Chassis && m.PostCopy:
			v.reason, v.source = ReasonPostCopyLost, l
			v.message = fmt.Sprintf("migration %s: the target ended in post-copy; the VM is lost, pod %s on %s cannot continue it", m.label(), l.Name, l.Chassis)
			return v
		case stamp.Source == l.Chassis && !m.Succeeded: // else it moved on, and came back
			v.phase, v.source = RolledBack, l
			v.reason, v.message = m.failure()
			return v
		}
		v.migration = ""
	}
	for _, t := range s.Launchers {
		if m := s.migration(t.Job); t.Chassis == "" && t.Job != "" && !m.ended() {
			v.reason, v.migration, v.source, v.target = ReasonTargetUnscheduled, t.Job, l, t
			v.message = fmt.Sprintf("migration %s waits for its target pod %s to be scheduled; pod %s carries the VM on %s", m.label(), t.Name, l.Name, l.Chassis)
			return v
		}
	}
	if !env.Chassis[l.Chassis] {
		v.reason = ReasonChassisMissing
		v.message = fmt.Sprintf("pod %s is on %s, which is not a chassis yet: is godwit-agent running there?", l.Name, l.Chassis)
	}
	return v
}

// targetAlone: the source of a prepared migration has gone or finished, the target has not.
func (s Snapshot) targetAlone(m Migration, v verdict) verdict {
	l := v.target
	switch {
	case m.runs() && !m.Ready && !l.Ready:
		// Either the migration is about to be seen as a success, or the source was deleted and the VMI is about to fail: a moment in either case.
		v.phase, v.reason, v.aim = Prepared, ReasonSourceGone, keep
		if s.activatedFor(l.Chassis) {
			v.phase = Activated
		}
		v.message = fmt.Sprintf("migration %s: the source pod is gone, and the VM was not seen in pod %s on %s yet", m.label(), l.Name, l.Chassis)
	case m.Failed && !m.Succeeded:
		v.message = fmt.Sprintf("migration %s failed, and its source is gone: pod %s on %s is left, without the VM", m.label(), l.Name, l.Chassis)
	default:
		v.phase, v.reason = Committed, ReasonSourceFinished
		v.message = fmt.Sprintf("migration %s: the source has finished, pod %s on %s is left", m.label(), l.Name, l.Chassis)
	}
	return v
}

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
	var placed []Launcher
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

// both: two launchers are live, so one is the target of a migration.
func (s Snapshot) both(older, younger Launcher, env Env) verdict {
	source, target, ok := s.order(older, younger)
	if !ok {
		return unclear(ReasonNoTarget, fmt.Sprintf("pods %s on %s and %s on %s are both live, and neither can be told to be the target of a migration: "+
			"the ports stay as they are until one has finished; delete the one that does not run the VM",
			older.Name, older.Chassis, younger.Name, younger.Chassis))
	}
	m := s.migration(target.Job)
	v := s.outcome(m, source, target, env)
	v.migration, v.source, v.target = target.Job, source, target
	return v
}

// order finds which of two launchers is the target. A target is always made after its source: creation times decide, and their whole seconds are fine
// enough for all but recordings and tests, where what the migrations say decides.
func (s Snapshot) order(older, younger Launcher) (source, target Launcher, ok bool) {
	if older.Job == younger.Job {
		return Launcher{}, Launcher{}, false // two sources, or two targets
	}
	if !older.Created.Equal(younger.Created) {
		return older, younger, younger.Job != ""
	}
	oldRuns, youngRuns := older.Job != "" && s.migration(older.Job).runs(), younger.Job != "" && s.migration(younger.Job).runs()
	switch {
	case older.Job == "" || younger.Job != "" && youngRuns && !oldRuns:
		return older, younger, true
	case younger.Job == "" || oldRuns && !youngRuns:
		return younger, older, true
	}
	return Launcher{}, Launcher{}, false
}

// outcome judges a migration both of whose launchers are live.
func (s Snapshot) outcome(m Migration, source, target Launcher, env Env) verdict {
	stamped := s.stampedBy(m.UID)
	switch {
	case m.TargetPod != "" && m.TargetPod != target.Name, m.SourcePod != "" && m.SourcePod != source.Name:
		return unclear(ReasonUIDMismatch, fmt.Sprintf("the VMI's status.migrationState says that migration %s is from pod %s to pod %s, but from %s to %s was seen",
			m.label(), m.SourcePod, m.TargetPod, source.Name, target.Name))
	case m.Succeeded && m.Failed:
		return unclear(ReasonContradiction, fmt.Sprintf("migration %s has both succeeded and failed: "+
			"the ports stay as they are until one of the pods %s and %s has finished", m.label(), source.Name, target.Name))
	case m.Succeeded:
		return committed(target, ReasonMigrationSucceeded, fmt.Sprintf("migration %s succeeded, pod %s carries the VM on %s", m.label(), target.Name, target.Chassis))
	case m.Failed && m.PostCopy:
		return verdict{phase: PostCopy, reason: ReasonPostCopyFailed, aim: keep, holder: target,
			message: fmt.Sprintf("migration %s failed in post-copy: the VM is lost, neither pod can continue it; restart the VM", m.label())}
	case m.Failed && stamped:
		reason, message := m.failure()
		return verdict{phase: RolledBack, reason: reason, message: message, aim: single, holder: source}
	case m.Failed:
		return verdict{phase: Settled, reason: ReasonMigrationEnded, aim: single, holder: source,
			message: fmt.Sprintf("migration %s failed before it was prepared, pod %s carries the VM on %s", m.label(), source.Name, source.Chassis)}
	case m.Seen:
		return s.running(m, source, target, env)
	case m.Ready || stamped && target.Ready || s.committedTo(source, target): // of a migration that was never seen the pod's own word is no proof
		return committed(target, ReasonTargetReady, fmt.Sprintf("migration %s is gone, but the VM runs in pod %s on %s", m.label(), target.Name, target.Chassis))
	case m.PostCopy:
		return verdict{phase: PostCopy, reason: ReasonPostCopyRunning, aim: keep, holder: target,
			message: fmt.Sprintf("migration %s is gone, but the VM was handed over to pod %s on %s, in post-copy", m.label(), target.Name, target.Chassis)}
	case stamped:
		return verdict{phase: RolledBack, reason: ReasonMigrationGone, aim: single, holder: source,
			message: fmt.Sprintf("migration %s is gone, and the VM was not ready in pod %s: pod %s carries it on %s",
				m.label(), target.Name, source.Name, source.Chassis)}
	}
	return verdict{phase: Settled, reason: ReasonMigrationUnseen, aim: single, holder: source,
		message: fmt.Sprintf("pod %s is for migration %s, which does not exist or was not seen yet; pod %s carries the VM on %s",
			target.Name, m.label(), source.Name, source.Chassis)}
}

func committed(target Launcher, reason Reason, message string) verdict {
	return verdict{phase: Committed, reason: reason, message: message, aim: single, holder: target}
}

// running judges a migration that is not over and whose target has a node. Its own phase is of no interest: see the package's rules.
func (s Snapshot) running(m Migration, source, target Launcher, env Env) verdict {
	if s.committedTo(source, target) {
		return committed(target, ReasonTargetReady, fmt.Sprintf("migration %s: the VM runs in pod %s on %s", m.label(), target.Name, target.Chassis))
	}
	if env.Baseline == BaselineFlip {
		return verdict{phase: Settled, reason: ReasonBaseline, aim: later, holder: source,
			message: fmt.Sprintf("migration %s: a benchmark keeps the ports on %s until it has succeeded", m.label(), source.Chassis)}
	}
	if m.Ready || target.Ready {
		return s.ready(m, source, target, env)
	}
	if source.Chassis == target.Chassis {
		return unclear(ReasonSameNode, fmt.Sprintf("migration %s: pods %s and %s are both on %s: a port cannot be there twice, "+
			"pod %s does not get its network; delete the migration",
			m.label(), source.Name, target.Name, source.Chassis, target.Name))
	}
	for _, l := range []Launcher{source, target} {
		if !env.Chassis[l.Chassis] {
			return unclear(ReasonUnknownChassis, fmt.Sprintf("migration %s: %s, the node of pod %s, is not a chassis: is godwit-agent running there?",
				m.label(), l.Chassis, l.Name))
		}
	}
	prepared, activated := s.prepared(source, target)
	from := fmt.Sprintf("migration %s from %s to %s", m.label(), source.Chassis, target.Chassis)
	switch {
	case !prepared && !s.pairable(source, target):
		return verdict{phase: Settled, reason: ReasonNorthdBehind, aim: await, holder: source, requeue: requeueNorthd,
			message: from + " waits for northd: the southbound database still has what the ports asked for before"}
	case activated && m.PostCopy:
		return verdict{phase: PostCopy, reason: ReasonPostCopyRunning, aim: pair, holder: target, message: from + ": the VM runs on the target, in post-copy"}
	case activated:
		return verdict{phase: Activated, reason: ReasonTargetActivated, aim: pair, holder: source, message: from + ": the VM announced itself on the target"}
	}
	return verdict{phase: Prepared, reason: ReasonTargetScheduled, aim: pair, holder: source, message: from + ": the target may attach"}
}

// ready judges a migration whose VM runs on the target, while KubeVirt has not called it over.
func (s Snapshot) ready(m Migration, source, target Launcher, env Env) verdict {
	prepared, activated := s.prepared(source, target)
	activated = activated || env.Baseline == BaselineClone // it was never blocked
	at := m.ReadyAt
	if at.IsZero() {
		at = target.ReadyAt
	}
	due := activationGrace // a timestamp that could not be read never comes to its end: then KubeVirt's word is waited for
	if !at.IsZero() {
		due = at.Add(activationGrace).Sub(env.Now)
	}
	switch {
	case prepared && !activated && due > 0:
		return verdict{phase: Prepared, reason: ReasonNotActivated, aim: pair, holder: target, requeue: min(due, activationGrace),
			message: fmt.Sprintf("migration %s: the VM runs in pod %s on %s, which was not activated: no RARP came through yet",
				m.label(), target.Name, target.Chassis)}
	case prepared && !activated:
		return committed(target, ReasonActivationOverdue, fmt.Sprintf("migration %s: the VM runs in pod %s on %s, though no RARP came through there",
			m.label(), target.Name, target.Chassis))
	}
	return committed(target, ReasonTargetReady, fmt.Sprintf("migration %s: the VM runs in pod %s on %s", m.label(), target.Name, target.Chassis))
}

package migration

import "fmt"

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
		return verdict{phase: Activated, reason: ReasonTargetActivated, aim: pair, holder: source, message: from + ": the target's ports are open"}
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

package migration

import (
	"fmt"
	"slices"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Fenced is the snapshot with the launchers marked whose node the API says is gone: its Node was deleted, or somebody has tainted it as out of service and answers for
// it that nothing runs there. A node that merely does not report is not gone: its VM may run, and a second one would write to the same disk and send from the same addresses.
func (s Snapshot) Fenced(gone map[ident.ChassisName]bool) Snapshot {
	s.Launchers = slices.Clone(s.Launchers)
	for i := range s.Launchers {
		s.Launchers[i].NodeGone = gone[s.Launchers[i].Chassis]
	}
	return s
}

// standing leaves out of launchers that have a node those whose node is gone, whatever the API still says of their pods. One that nobody has taken the place of is not left out: nobody
// else wants its ports, and the word of an operator who was mistaken then costs nothing.
func standing(placed []Launcher) (left, gone []Launcher) {
	for _, l := range placed {
		if l.NodeGone {
			gone = append(gone, l)
		} else {
			left = append(left, l)
		}
	}
	if len(left) == 0 {
		return placed, nil
	}
	return left, gone
}

// survivor judges the one launcher whose node is not gone.
func (s Snapshot) survivor(l Launcher, gone []Launcher, env Env) verdict {
	v := s.alone(l, env)
	lost := gone[len(gone)-1]
	m := s.migration(l.Job)
	switch arrived := m.Ready || l.Ready; {
	case m.runs() && !arrived:
		// The VM is in this pod or nowhere. KubeVirt finds out which; the node that is gone is asked for no more, should it come back.
		v.phase, v.reason, v.aim = Settled, ReasonNodeGone, single
		v.migration, v.source, v.target = l.Job, lost, l
		v.message = fmt.Sprintf("migration %s: %s, the node of pod %s, is gone: if the VM is anywhere, it is in pod %s on %s", m.label(), lost.Chassis, lost.Name, l.Name, l.Chassis)
	case v.reason == ReasonOneLauncher:
		v.reason = ReasonNodeGone
		v.message = fmt.Sprintf("pod %s carries the VM on %s: %s, the node of pod %s, is gone", l.Name, l.Chassis, lost.Chassis, lost.Name)
	}
	return v
}

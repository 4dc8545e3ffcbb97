package migration

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// TestProperties lets KubeVirt, the watches, northd, the agents and the controller act in any order, nodes die, and the controller be restarted at any moment,
// and holds every write and every moment against the invariants:
//   - no empty chassis, no two mains, the target blocked and never main before the VM is there (fakeOVN.check);
//   - no launcher attaches before its rows ask for its chassis, and none waits for ever;
//   - where the VM runs, its port is asked for;
//   - deciding twice changes nothing;
//   - at rest, the VM is Settled where it runs, or Stopped.
func TestProperties(t *testing.T) {
	phases := map[Phase]int{}
	reasons := map[Reason]int{}
	rapid.Check(t, func(t *rapid.T) {
		s := newSim(t)
		actions := s.actions()
		pick := rapid.SampledFrom(slices.Collect(func(yield func(string) bool) {
			for _, name := range slices.Sorted(maps.Keys(actions)) {
				for range actions[name].weight {
					if !yield(name) {
						return
					}
				}
			}
		}))
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			actions[pick.Draw(t, "action")].do()
			s.check()
			phases[s.last.Phase]++
			reasons[s.last.Reason]++
		}
		s.finish()
	})
	t.Logf("phases %v, reasons %v", phases, reasons)
	if reasons[ReasonNodeGone] == 0 {
		t.Errorf("no run came to reason %s: the test proves little of nodes that are gone", ReasonNodeGone)
	}
	for _, p := range []Phase{Stopped, Settled, Prepared, Activated, Committed, RolledBack, PostCopy} {
		if phases[p] == 0 {
			t.Errorf("no run came to phase %s: the test proves little", p)
		}
	}
}

type action struct {
	weight int
	do     func()
}

// actions are what may happen next, and how often.
func (s *sim) actions() map[string]action {
	watch := rapid.SampledFrom([]string{"vmis", "pods", "vmims", "nodes"})
	return map[string]action{
		"progress":       {16, s.progress},
		"deliver":        {16, func() { s.deliver(watch.Draw(s.t, "watch")) }},
		"deliver all":    {4, s.deliverAll},
		"controller":     {12, s.controller},
		"northd":         {8, s.ovn.northd},
		"agents":         {6, s.agents},
		"restart":        {2, s.restart},
		"rest":           {1, s.rest},
		"fail":           {2, s.fail},
		"vanish":         {1, s.vanish},
		"stop":           {1, s.stop},
		"source deleted": {1, s.sourceDeleted},
		"collect":        {1, s.collect},
		"outage":         {2, s.outage},
		"time":           {2, func() { s.clock += 3 }},
	}
}

// progress is what KubeVirt and Kubernetes do next when nothing goes wrong.
func (s *sim) progress() {
	s.deleteVMI()
	s.start()
	s.schedule()
	s.kubelets()
	s.migrate()
	s.advance()
}

func (s *sim) decide() Decision {
	var pods []*corev1.Pod
	for _, p := range s.view.pods {
		pods = append(pods, p)
	}
	var vmims []*kubevirtv1.VirtualMachineInstanceMigration
	for _, m := range s.view.vmims {
		vmims = append(vmims, m)
	}
	env := Env{Now: epoch.Add(time.Duration(s.clock) * time.Second), Chassis: s.ovn.chassis}
	return Decide(Observe(pods, s.view.vmi, vmims, s.ovn.rows, s.ovn.bindings()).Fenced(map[ident.ChassisName]bool{ident.ChassisName(s.view.gone): s.view.gone != ""}), env)
}

// controller is one turn of the reconciler.
func (s *sim) controller() {
	d := s.decide()
	for _, a := range d.Attach {
		pod := s.view.pods[a.Pod]
		if string(pod.UID) != a.PodUID || pod.Spec.NodeName != string(a.Chassis) || !s.ovn.asks(a.Chassis, networks(pod, s.view.vmi)) {
			s.t.Fatalf("%+v may attach, the rows do not say so: %s", a, describe(d))
		}
	}
	if err := s.ovn.apply(d); err != nil {
		s.t.Fatal(err)
	}
	again := s.decide()
	if changed(again) {
		s.t.Fatalf("deciding twice changes a port:\n%s%s", describe(d), describe(again))
	}
	for _, a := range d.Attach {
		s.granted[podUID(a)] = true
	}
	s.last = again
}

// restart: what was not written is forgotten, and everything is listed anew.
func (s *sim) restart() { s.deliverAll() }

// check: the VM's port is asked for where the VM is, and nowhere may it send before it is there.
func (s *sim) check() {
	if s.job != nil && s.job.stage < resumed && s.truth.pods[s.job.target] != nil {
		if c := s.attached[s.truth.pods[s.job.target].UID]; c != "" {
			for network, b := range s.ovn.sb {
				if slices.Contains(b.RequestedAdditionalChassis, "uuid-of-"+c) && strings.Contains(b.Options[ident.BindingActivated], c) {
					s.t.Fatalf("port %s is open on %s before the VM is there: %s", network, c, describe(s.last))
				}
			}
		}
	}
	if s.home == "" || s.forced {
		return
	}
	got := s.ovn.rows[ident.DefaultNetwork].Options[ident.OptionRequestedChassis]
	if !slices.Contains(strings.Split(got, ","), s.homeNode) {
		s.t.Fatalf("the VM runs on %s, requested-chassis is %q: %s", s.homeNode, got, describe(s.last))
	}
}

// rest lets everybody act until there is nothing to do, and checks that nobody who may go on is kept waiting.
func (s *sim) rest() {
	for range 8 {
		s.deliverAll()
		s.controller()
		s.ovn.northd()
		s.agents()
	}
	s.forced = s.forced && s.job != nil
	for _, p := range s.live() {
		waits := p.Spec.NodeName != "" && s.attached[p.UID] == "" && !s.truth.vmi.IsFinal()
		if waits && (s.job == nil || s.truth.vmims[s.job.vmim] != nil) {
			s.t.Fatalf("pod %s on %s waits for its network for ever: %s", p.Name, p.Spec.NodeName, describe(s.last))
		}
	}
}

func (s *sim) sourceDeleted() {
	if s.job != nil && s.job.stage < ready {
		s.deletePod(s.job.source)
		s.loseVM(kubevirtv1.Failed)
	}
}

// finish brings what is under way to one end or the other, and checks where it ended.
func (s *sim) finish() {
	for range 40 {
		if s.job == nil {
			break
		}
		s.rest()
		s.check()
		if rapid.IntRange(0, 9).Draw(s.t, "fails now") == 0 {
			s.fail()
			continue
		}
		s.schedule()
		s.rest()
		s.kubelets()
		s.advance()
	}
	if s.job != nil {
		s.t.Fatalf("the migration does not end: %+v: %s", *s.job, describe(s.last))
	}
	s.rest()
	s.check()
	want, phase := string(ident.NoChassis), Stopped
	if live := s.live(); len(live) == 1 && !s.truth.vmi.IsFinal() && live[0].Spec.NodeName != "" {
		want, phase = live[0].Spec.NodeName, Settled
	}
	if want == string(ident.NoChassis) && s.deadAlone() {
		return // the row stays: an operator's mistake must cost nothing
	}
	row := s.ovn.rows[ident.DefaultNetwork]
	if s.last.Phase != phase || row.Options[ident.OptionRequestedChassis] != want || row.Options[ident.OptionActivationStrategy] != "" {
		s.t.Fatalf("want %s on %q, the row has %v: %s", phase, want, row.Options, describe(s.last))
	}
}

package migration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// sim plays KubeVirt, the kubelets and the agents around the decisions, for one VM. The truth is what the API server has; the controller sees it through
// three watches, each of which keeps its own order and none of which keeps pace with another.
type sim struct {
	t      *rapid.T
	clock  int // seconds; every object is made in another one
	serial serial

	truth, view state
	watches     map[string][]change

	ovn      *fakeOVN
	last     Decision
	granted  map[types.UID]bool   // by the pod's annotation
	attached map[types.UID]string // pod UID → node
	job      *job
	home     types.UID // the pod in which the VM runs
	homeNode string
	forced   bool // somebody removed a running migration's finalizer: until KubeVirt says where the VM is, its port may be elsewhere
}

type serial struct{ vmis, pods, vmims int }

// state is a set of API objects.
type state struct {
	vmi   *kubevirtv1.VirtualMachineInstance
	pods  map[string]*corev1.Pod
	vmims map[string]*kubevirtv1.VirtualMachineInstanceMigration
	// gone is the node that was put out of service, empty if none is.
	gone string
}

// change is one watch event; exactly one of the objects, or the name of what was deleted, or of the node that is gone.
type change struct {
	vmi     *kubevirtv1.VirtualMachineInstance
	pod     *corev1.Pod
	vmim    *kubevirtv1.VirtualMachineInstanceMigration
	deleted string
}

// job is the migration under way.
type job struct {
	vmim, uid      string
	source, target string // pod names
	stage          stage
	post           bool
	hotplug        bool // the migration's phase stays Pending until the target is ready
}

type stage int

const (
	created stage = iota
	targetCreated
	targetScheduled
	targetRuns
	handedOff
	started
	resumed // the VM runs on the target
	ready
	flipped
	completed
	succeeded
)

var simNodes = []string{"n1", "n2", "n3", "n4"}

func newSim(t *rapid.T) *sim {
	s := &sim{
		t: t, watches: map[string][]change{}, ovn: newFakeOVN("n1", "n2", "n3", "n4"),
		granted: map[types.UID]bool{}, attached: map[types.UID]string{},
		truth: state{pods: map[string]*corev1.Pod{}, vmims: map[string]*kubevirtv1.VirtualMachineInstanceMigration{}},
		view:  state{pods: map[string]*corev1.Pod{}, vmims: map[string]*kubevirtv1.VirtualMachineInstanceMigration{}},
	}
	s.ovn.port(ident.DefaultNetwork)
	s.ovn.port("blue")
	return s
}

func (s *sim) tick() time.Time {
	s.clock++
	return epoch.Add(time.Duration(s.clock) * time.Second)
}

// The three setters change the truth and queue the watch event.
func (s *sim) setVMI(f func(*kubevirtv1.VirtualMachineInstance)) {
	if s.truth.vmi != nil {
		f(s.truth.vmi)
		s.watches["vmis"] = append(s.watches["vmis"], change{vmi: s.truth.vmi.DeepCopy()})
	}
}

func (s *sim) setPod(name string, f func(*corev1.Pod)) {
	if pod := s.truth.pods[name]; pod != nil {
		f(pod)
		s.watches["pods"] = append(s.watches["pods"], change{pod: pod.DeepCopy()})
	}
}

func (s *sim) setVMIM(name string, f func(*kubevirtv1.VirtualMachineInstanceMigration)) {
	if vmim := s.truth.vmims[name]; vmim != nil {
		f(vmim)
		s.watches["vmims"] = append(s.watches["vmims"], change{vmim: vmim.DeepCopy()})
	}
}

func (s *sim) deletePod(name string) {
	delete(s.truth.pods, name)
	s.watches["pods"] = append(s.watches["pods"], change{deleted: name})
}

// deleteVMIM: no watch lags by as long as a migration's object lives, so that all that happened before is seen before its end.
func (s *sim) deleteVMIM(name string) {
	s.deliverAll()
	delete(s.truth.vmims, name)
	s.watches["vmims"] = append(s.watches["vmims"], change{deleted: name})
}

// deliver takes the next event of a watch.
func (s *sim) deliver(watch string) {
	queue := s.watches[watch]
	if len(queue) == 0 {
		return
	}
	c := queue[0]
	s.watches[watch] = queue[1:]
	switch {
	case c.vmi != nil:
		s.view.vmi = c.vmi
	case c.pod != nil:
		s.view.pods[c.pod.Name] = c.pod
	case c.vmim != nil:
		s.view.vmims[c.vmim.Name] = c.vmim
	case watch == "nodes":
		s.view.gone = c.deleted
	case watch == "vmis":
		s.view.vmi = nil
	case watch == "pods":
		delete(s.view.pods, c.deleted)
	default:
		delete(s.view.vmims, c.deleted)
	}
}

func (s *sim) deliverAll() {
	for _, watch := range []string{"vmis", "pods", "vmims", "nodes"} {
		for len(s.watches[watch]) > 0 {
			s.deliver(watch)
		}
	}
}

// live are the truth's launchers that have not finished, nor died with their node, in order of name.
func (s *sim) live() []*corev1.Pod {
	var out []*corev1.Pod
	for _, name := range slices.Sorted(maps.Keys(s.truth.pods)) {
		if p := s.truth.pods[name]; s.truth.vmi != nil && isLauncher(p, s.truth.vmi) && !finished(p) && !s.dead(p) {
			out = append(out, p)
		}
	}
	return out
}

// dead: the pod's node is gone, whatever the API says of the pod.
func (s *sim) dead(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.Spec.NodeName == s.truth.gone
}

func (s *sim) makePod(jobUID string) string {
	s.serial.pods++
	name := fmt.Sprintf("p%d", s.serial.pods)
	pod := newLauncher(name, name, string(s.truth.vmi.UID), s.tick())
	if jobUID != "" {
		pod.Labels[kubevirtv1.MigrationJobLabel] = jobUID
	}
	if rapid.Bool().Draw(s.t, "blue NIC") {
		setNetworks(pod, []string{"blue"})
	}
	s.truth.pods[name] = pod
	s.setPod(name, func(*corev1.Pod) {})
	return name
}

// start makes a VMI with its first launcher; an earlier VMI's pods may linger.
func (s *sim) start() {
	if s.truth.vmi != nil {
		return
	}
	s.serial.vmis++
	s.truth.vmi = &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: types.UID(fmt.Sprintf("V%d", s.serial.vmis))}}
	s.truth.vmi.Status.Phase = kubevirtv1.Scheduling
	s.truth.vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork(),
		{Name: "blue", NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "nad-blue"}}}}
	s.setVMI(func(*kubevirtv1.VirtualMachineInstance) {})
	s.makePod("")
}

// schedule gives a launcher without a node one on which no other launcher is.
func (s *sim) schedule() {
	taken := map[string]bool{s.truth.gone: true}
	for _, p := range s.live() {
		taken[p.Spec.NodeName] = true
	}
	for _, p := range s.live() {
		if p.Spec.NodeName != "" {
			continue
		}
		node := rapid.SampledFrom(slices.DeleteFunc(slices.Clone(simNodes), func(n string) bool { return taken[n] })).Draw(s.t, "node")
		s.setPod(p.Name, func(p *corev1.Pod) { p.Spec.NodeName = node })
		if s.job != nil && s.job.target == p.Name {
			s.job.stage = targetScheduled
		}
	}
}

// agents do what CNI ADD does: a launcher that may attach attaches, if its rows ask for its node.
func (s *sim) agents() {
	for _, p := range s.live() {
		if s.granted[p.UID] && s.attached[p.UID] == "" && p.Spec.NodeName != "" && s.ovn.asks(ident.ChassisName(p.Spec.NodeName), networks(p, s.truth.vmi)) {
			s.attached[p.UID] = p.Spec.NodeName
		}
	}
}

// kubelets let attached launchers run; the first one starts the VM.
func (s *sim) kubelets() {
	for _, p := range s.live() {
		if s.attached[p.UID] == "" || p.Status.Phase == corev1.PodRunning || s.truth.vmi.IsFinal() {
			continue
		}
		s.setPod(p.Name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning })
		if s.job != nil && s.job.target == p.Name {
			s.job.stage = targetRuns
			continue
		}
		s.home, s.homeNode = p.UID, p.Spec.NodeName
		s.setVMI(func(v *kubevirtv1.VirtualMachineInstance) {
			v.Status.Phase, v.Status.NodeName = kubevirtv1.Running, p.Spec.NodeName
		})
	}
}

// migrate asks for a migration, if KubeVirt would begin one.
func (s *sim) migrate() {
	if s.home == "" || s.job != nil || len(s.live()) != 1 || s.truth.vmi.IsFinal() {
		return
	}
	s.serial.vmims++
	name := fmt.Sprintf("m%d", s.serial.vmims)
	s.truth.vmims[name] = &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(strings.ToUpper(name)), CreationTimestamp: metav1.Time{Time: s.tick()}},
		Spec:       kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: "vm"},
	}
	s.setVMIM(name, func(*kubevirtv1.VirtualMachineInstanceMigration) {})
	s.job = &job{vmim: name, uid: strings.ToUpper(name), source: s.live()[0].Name, hotplug: rapid.Bool().Draw(s.t, "hotplug")}
}

func (s *sim) phase(p kubevirtv1.VirtualMachineInstanceMigrationPhase) {
	s.setVMIM(s.job.vmim, func(m *kubevirtv1.VirtualMachineInstanceMigration) { m.Status.Phase = p })
}

func (s *sim) record(f func(*kubevirtv1.VirtualMachineInstanceMigrationState)) {
	s.setVMI(func(v *kubevirtv1.VirtualMachineInstance) { f(v.Status.MigrationState) })
}

// advance takes the migration one step on, in KubeVirt's order.
func (s *sim) advance() {
	j := s.job
	if j == nil {
		return
	}
	switch j.stage {
	case created:
		j.target = s.makePod(j.uid)
		if !j.hotplug {
			s.phase(kubevirtv1.MigrationScheduling)
		}
	case targetCreated, targetScheduled: // the scheduler's and the kubelet's turn
		return
	case targetRuns:
		s.setVMI(func(v *kubevirtv1.VirtualMachineInstance) {
			v.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{MigrationUID: types.UID(j.uid), SourcePod: j.source, TargetPod: j.target}
		})
		s.phase(kubevirtv1.MigrationPreparingTarget)
	case handedOff:
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.Mode = kubevirtv1.MigrationPreCopy })
		s.phase(kubevirtv1.MigrationRunning)
	case started:
		if j.post = rapid.Bool().Draw(s.t, "post-copy"); j.post {
			s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.Mode = kubevirtv1.MigrationPostCopy })
		}
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.TargetNodeDomainDetected = true })
		target := s.truth.pods[j.target]
		s.home, s.homeNode = target.UID, target.Spec.NodeName
		if rapid.Bool().Draw(s.t, "RARP comes through") {
			s.ovn.activate(ident.ChassisName(s.homeNode))
		}
	case resumed:
		if rapid.IntRange(0, 3).Draw(s.t, "readiness is not told") == 0 {
			break
		}
		at := metav1.Time{Time: s.tick()}
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.TargetNodeDomainReadyTimestamp = &at })
		s.setPod(j.target, func(p *corev1.Pod) { p.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = at.String() })
	case ready:
		s.setVMI(func(v *kubevirtv1.VirtualMachineInstance) { v.Status.NodeName = s.homeNode })
	case flipped:
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.Completed = true })
	case completed:
		s.phase(kubevirtv1.MigrationSucceeded)
	case succeeded:
		s.setPod(j.source, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		s.job = nil
		return
	}
	j.stage++
}

// fail ends the migration before the target was ready: by itself, by a deleted target, or by a user. The parts of it are seen in any order, for
// each has its own watch.
func (s *sim) fail() {
	j := s.job
	if j == nil || j.stage >= ready {
		return
	}
	s.job = nil
	if j.post {
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) { m.Failed, m.Completed = true, true })
		s.setVMIM(j.vmim, func(m *kubevirtv1.VirtualMachineInstanceMigration) { m.Status.Phase = kubevirtv1.MigrationFailed })
		s.loseVM(kubevirtv1.Failed)
		return
	}
	source := s.truth.pods[j.source]
	s.home, s.homeNode = source.UID, source.Spec.NodeName
	cancelled := rapid.Bool().Draw(s.t, "cancelled")
	if j.stage >= handedOff {
		s.record(func(m *kubevirtv1.VirtualMachineInstanceMigrationState) {
			m.Failed, m.Completed = true, true
			if cancelled {
				m.AbortStatus = kubevirtv1.MigrationAbortSucceeded
			}
		})
	}
	s.endTarget(j.target)
	if !cancelled || j.stage >= handedOff {
		s.setVMIM(j.vmim, func(m *kubevirtv1.VirtualMachineInstanceMigration) { m.Status.Phase = kubevirtv1.MigrationFailed })
	}
	if cancelled {
		s.deleteVMIM(j.vmim)
	}
}

func (s *sim) endTarget(name string) {
	if name == "" {
		return
	}
	switch end := rapid.SampledFrom([]corev1.PodPhase{"", corev1.PodSucceeded, corev1.PodFailed}).Draw(s.t, "target ends"); end {
	case "":
		s.deletePod(name)
	default:
		s.setPod(name, func(p *corev1.Pod) { p.Status.Phase = end })
	}
}

// vanish removes a migration by force, finalizer and all: virt-handlers carry on as if nothing happened.
func (s *sim) vanish() {
	if s.job == nil || s.job.stage < handedOff || s.truth.vmims[s.job.vmim] == nil {
		return
	}
	s.forced = true
	s.deleteVMIM(s.job.vmim)
}

// loseVM ends the VM: it shut down, its source pod was deleted during a migration, or post-copy failed.
func (s *sim) loseVM(phase kubevirtv1.VirtualMachineInstancePhase) {
	s.home, s.homeNode, s.job = "", "", nil
	s.setVMI(func(v *kubevirtv1.VirtualMachineInstance) { v.Status.Phase = phase })
	for _, p := range s.live() {
		if rapid.Bool().Draw(s.t, "deleted") {
			s.deletePod(p.Name)
		} else if rapid.Bool().Draw(s.t, "finishes") { // else it lingers, on a dead node
			s.setPod(p.Name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		}
	}
}

func (s *sim) stop() {
	if s.home != "" {
		s.loseVM(kubevirtv1.Succeeded)
	}
}

// deleteVMI: what the VM left behind may stay.
func (s *sim) deleteVMI() {
	if s.truth.vmi != nil && s.truth.vmi.IsFinal() {
		s.truth.vmi = nil
		s.watches["vmis"] = append(s.watches["vmis"], change{deleted: "vm"})
	}
}

// collect removes finished pods and migrations.
func (s *sim) collect() {
	for _, name := range slices.Sorted(maps.Keys(s.truth.pods)) {
		if finished(s.truth.pods[name]) {
			s.deletePod(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.truth.vmims)) {
		if s.truth.vmims[name].IsFinal() && (s.job == nil || s.job.vmim != name) {
			s.deleteVMIM(name)
		}
	}
}

// outage: a node dies and is put out of service, or the one that was comes back. What ran there is dead, the API may go on listing it, and KubeVirt draws its conclusions.
func (s *sim) outage() {
	if s.truth.gone != "" {
		s.comesBack()
		return
	}
	node := rapid.SampledFrom(simNodes).Draw(s.t, "dying node")
	s.truth.gone = node
	s.watches["nodes"] = append(s.watches["nodes"], change{deleted: node})
	j, died := s.job, s.homeNode == node
	switch {
	case j != nil && died, j != nil && j.post && s.truth.pods[j.source] != nil && s.truth.pods[j.source].Spec.NodeName == node && j.stage < ready:
		s.loseVM(kubevirtv1.Failed)
	case j != nil && s.truth.pods[j.target] != nil && s.truth.pods[j.target].Spec.NodeName == node:
		s.fail()
	case died && rapid.Bool().Draw(s.t, "the instance goes on"): // it has another launcher; KubeVirt fails it, as a rule
		s.home, s.homeNode = "", ""
		s.makePod("")
		s.schedule()
	case died:
		s.loseVM(kubevirtv1.Failed)
	}
}

// deadAlone: what the instance has are launchers on the node that is gone.
func (s *sim) deadAlone() bool {
	for _, p := range s.truth.pods {
		if s.truth.vmi != nil && !s.truth.vmi.IsFinal() && isLauncher(p, s.truth.vmi) && s.dead(p) && !finished(p) {
			return true
		}
	}
	return false
}

// comesBack: the kubelet finds the node's containers dead.
func (s *sim) comesBack() {
	for _, name := range slices.Sorted(maps.Keys(s.truth.pods)) {
		if p := s.truth.pods[name]; s.dead(p) && !finished(p) {
			s.setPod(name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		}
	}
	s.truth.gone = ""
	s.watches["nodes"] = append(s.watches["nodes"], change{})
}

func podUID(a Attach) types.UID { return types.UID(a.PodUID) }

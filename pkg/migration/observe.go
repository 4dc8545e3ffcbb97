package migration

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// Snapshot is what is known of one VM, without anything that Decide does not need.
type Snapshot struct {
	VMI VMI
	// Launchers are the VMI's live launcher pods, the oldest first. Finished ones are left out.
	Launchers []Launcher
	// Migrations are those that a VirtualMachineInstanceMigration of this VMI, or the VMI's own status, tells of, in order of UID.
	Migrations []Migration
	// Ports are the VM's rows, in order of network.
	Ports []Port
}

// VMI is a VirtualMachineInstance. The zero value is none.
type VMI struct {
	Namespace, Name, UID string
	// Finished: phase Succeeded or Failed. Its pods carry nothing any more, whatever they say.
	Finished bool
}

// Launcher is a launcher pod that has not finished.
type Launcher struct {
	Name, UID string
	// Chassis is the pod's node, empty until it is scheduled.
	Chassis ident.ChassisName
	// Job is the UID of the migration that made the pod, empty for a VM's first launcher. It stays when the migration is over.
	Job     string
	Created time.Time // in whole seconds
	// NodeGone: see Snapshot.Fenced.
	NodeGone bool
	// Ready: KubeVirt marked the pod as the place where the VM runs after its migration; ReadyAt is when, zero if that could not be read.
	Ready   bool
	ReadyAt time.Time
	// Networks are those that the pod has an interface on, sorted; nil means unknown, and counts as all.
	Networks []string
}

// Migration is a VirtualMachineInstanceMigration as its own status and that of the VMI tell of it.
type Migration struct {
	UID, Name string
	// Seen: the object exists. A migration that only the VMI's status tells of is gone or not seen yet.
	Seen bool
	// Succeeded and Failed: the outcome. Neither while it runs. Both is a contradiction.
	Succeeded, Failed bool
	// Aborted: it failed because its abortion was asked for.
	Aborted bool
	// PostCopy: the VM was started on the target before its memory was there.
	PostCopy bool
	// Ready: the VM's domain was active on the target, at ReadyAt.
	Ready   bool
	ReadyAt time.Time
	// SourcePod and TargetPod are what the VMI's status names, empty before the hand-off.
	SourcePod, TargetPod string
}

// Port is one LogicalSwitchPort of the VM with its Port_Binding.
type Port struct {
	Name    ident.PortName
	Network string
	State   PortState
	// Activated are the chassis that the southbound database calls activated.
	Activated []ident.ChassisName
	// Additional: the southbound database asks for more than one chassis.
	Additional bool
	// Synced: northd has taken the row over as it is now, so that Activated and Additional are about it. northd copies options and
	// external_ids of a row into its Port_Binding.
	Synced bool
}

// Observe makes a Snapshot of one VM. vmi is nil when there is none. pods and vmims may hold those of others, which are left out: a launcher is
// known by its label and its controller's UID. ports are the VM's rows by network name, ident.DefaultNetwork being that of the pod network. bindings
// may be all there are. Nil elements are passed over, and no object makes it fail; nothing that is passed in is changed or kept.
func Observe(pods []*corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance, vmims []*kubevirtv1.VirtualMachineInstanceMigration,
	ports map[string]*nbdb.LogicalSwitchPort, bindings []*sbdb.PortBinding,
) Snapshot {
	s := Snapshot{Ports: observePorts(ports, bindings)}
	if vmi == nil {
		return s
	}
	s.VMI = VMI{
		Namespace: vmi.Namespace, Name: vmi.Name, UID: string(vmi.UID),
		Finished: vmi.Status.Phase == kubevirtv1.Succeeded || vmi.Status.Phase == kubevirtv1.Failed,
	}
	for _, pod := range pods {
		if isLauncher(pod, vmi) && !finished(pod) {
			s.Launchers = append(s.Launchers, observeLauncher(pod, vmi))
		}
	}
	slices.SortFunc(s.Launchers, func(a, b Launcher) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID)) })
	s.Migrations = observeMigrations(vmi, vmims)
	return s
}

// How KubeVirt marks its launcher pods (virt-controller, pkg/virt-controller/services/template.go): the value of the label kubevirtv1.AppLabel, and the name of the
// container in which QEMU runs.
const (
	launcherApp      = "virt-launcher"
	computeContainer = "compute"
)

// LauncherOf names the VMI, of the pod's namespace, whose launcher a pod is; ok is false for any other pod. Hotplug attachment pods have a migration's label
// too, and are ordinary pods. The pod's labels and owner references are its creator's word: a VMI of that name need not exist, nor have that UID.
func LauncherOf(pod *corev1.Pod) (name string, uid types.UID, ok bool) {
	if pod == nil || pod.Labels[kubevirtv1.AppLabel] != launcherApp {
		return "", "", false
	}
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil || owner.Kind != v1alpha1.KindVirtualMachineInstance || !strings.HasPrefix(owner.APIVersion, "kubevirt.io/") || owner.UID == "" {
		return "", "", false
	}
	return owner.Name, owner.UID, true
}

// isLauncher: launchers of an earlier VMI of the name have another owner.
func isLauncher(pod *corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) bool {
	_, uid, ok := LauncherOf(pod)
	return ok && pod.Namespace == vmi.Namespace && uid == vmi.UID
}

// finished: no process of the pod can hold the VM. A sidecar that somebody injected may keep a pod Running after its VM has left; the pod never
// restarts, so a terminated compute container is final.
func finished(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return true
	}
	for i := range pod.Status.ContainerStatuses {
		if c := &pod.Status.ContainerStatuses[i]; c.Name == computeContainer {
			return c.State.Terminated != nil
		}
	}
	return false
}

func observeLauncher(pod *corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) Launcher {
	l := Launcher{
		Name: pod.Name, UID: string(pod.UID), Chassis: ident.ChassisName(pod.Spec.NodeName), Job: pod.Labels[kubevirtv1.MigrationJobLabel],
		Created: pod.CreationTimestamp.UTC(), Networks: networks(pod, vmi),
	}
	var at string
	if at, l.Ready = pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp]; l.Ready {
		l.ReadyAt = parseGoTime(at)
	}
	return l
}

// parseGoTime reads what time.Time.String writes, which is how KubeVirt writes this annotation; zero if it is anything else.
func parseGoTime(s string) time.Time {
	s, _, _ = strings.Cut(s, " m=")
	t, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

func observeMigrations(vmi *kubevirtv1.VirtualMachineInstance, vmims []*kubevirtv1.VirtualMachineInstanceMigration) []Migration {
	byUID := map[string]Migration{}
	for _, vmim := range vmims {
		if vmim == nil || vmim.UID == "" || vmim.Namespace != vmi.Namespace || vmim.Spec.VMIName != vmi.Name {
			continue
		}
		m := Migration{
			UID: string(vmim.UID), Name: vmim.Name, Seen: true,
			Succeeded: vmim.Status.Phase == kubevirtv1.MigrationSucceeded, Failed: vmim.Status.Phase == kubevirtv1.MigrationFailed,
		}
		// The state is copied from the VMI at the end; before that it may be there without the UID.
		if state := vmim.Status.MigrationState; state != nil && state.MigrationUID == vmim.UID {
			m = withState(m, state)
		}
		byUID[m.UID] = m
	}
	// The VMI tells of the last migration that was handed off, which may be long over while another is on its way.
	if state := vmi.Status.MigrationState; state != nil && state.MigrationUID != "" {
		m := byUID[string(state.MigrationUID)]
		m.UID = string(state.MigrationUID)
		byUID[m.UID] = withState(m, state)
	}
	return slices.SortedFunc(maps.Values(byUID), func(a, b Migration) int { return cmp.Compare(a.UID, b.UID) })
}

// withState adds what a status tells. Facts only ever become true, so that of two statuses the newer need not be known.
func withState(m Migration, state *kubevirtv1.VirtualMachineInstanceMigrationState) Migration {
	m.Succeeded = m.Succeeded || state.Completed && !state.Failed
	m.Failed = m.Failed || state.Failed
	m.Aborted = m.Aborted || state.AbortStatus == kubevirtv1.MigrationAbortSucceeded
	m.PostCopy = m.PostCopy || state.Mode == kubevirtv1.MigrationPostCopy
	if at := state.TargetNodeDomainReadyTimestamp; at != nil {
		m.Ready, m.ReadyAt = true, at.UTC()
	}
	m.SourcePod = cmp.Or(state.SourcePod, m.SourcePod)
	m.TargetPod = cmp.Or(state.TargetPod, m.TargetPod)
	return m
}

func observePorts(rows map[string]*nbdb.LogicalSwitchPort, bindings []*sbdb.PortBinding) []Port {
	byName := map[string]*sbdb.PortBinding{}
	for _, b := range bindings {
		if b != nil {
			byName[b.LogicalPort] = b
		}
	}
	var out []Port
	for _, network := range slices.Sorted(maps.Keys(rows)) {
		row := rows[network]
		if row == nil {
			continue
		}
		p := Port{Name: ident.PortName(row.Name), Network: network, State: observeState(row.Options, row.ExternalIDs)}
		if b := byName[row.Name]; b != nil {
			p.Additional = len(b.RequestedAdditionalChassis) > 0
			p.Synced = observeState(b.Options, b.ExternalIDs) == p.State
			for name := range strings.SplitSeq(b.Options[ident.BindingActivated], ",") {
				if name != "" {
					p.Activated = append(p.Activated, ident.ChassisName(name))
				}
			}
		}
		out = append(out, p)
	}
	return out
}

// observeState reads what this package writes, from a row or from northd's copy of it.
func observeState(options, externalIDs map[string]string) PortState {
	return PortState{
		Requested: options[ident.OptionRequestedChassis],
		Strategy:  v1alpha1.Activation(options[ident.OptionActivationStrategy]),
		Stamp: Stamp{
			Migration: externalIDs[ident.KeyMigration],
			Source:    ident.ChassisName(externalIDs[ident.KeyMigrationSource]),
			Target:    ident.ChassisName(externalIDs[ident.KeyMigrationTarget]),
		},
	}
}

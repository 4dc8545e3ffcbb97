package kubevirt

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

const (
	guestNotRunning = "Guest VM is not reported as running"
	// launcherVersion is what a VMI says of its launcher's image; the lab's has another name.
	launcherVersion = "registry.invalid/virt-launcher:v1.9.0"
	// memoryOverhead is what KubeVirt reckons for a small VM's launcher.
	memoryOverhead = "268Mi"
	// observedVersion is of the API, as KubeVirt notes it on everything.
	observedVersion = "v1"
	// killAfter is how long a guest may take to end that was asked to, unless its VMI says otherwise.
	killAfter = 30 * time.Second
)

// observedAnnotations are those in which virt-controller notes the version of the API.
var observedAnnotations = []string{kubevirtv1.ControllerAPILatestVersionObservedAnnotation, kubevirtv1.ControllerAPIStorageVersionObservedAnnotation}

// vmiRules are virt-controller's and virt-handler's for a VMI outside of migrations.
func vmiRules(w *world) *step {
	if w.vmi == nil {
		return nil
	}
	return first(w, vmiAdmission, vmiDeletion, vmiObserved, vmiLauncher, vmiUnpausedCondition, vmiScheduling, vmiActivePods, vmiScheduled, vmiNodeLabel,
		vmiDomain, vmiRunning, vmiReady, vmiPaused, vmiEnded)
}

// vmiAdmission does what KubeVirt's webhook does, where the policy of admission.yaml has not.
func vmiAdmission(w *world) *step {
	if w.vmi.DeletionTimestamp != nil {
		return nil
	}
	return w.changeVMI("admission", func(vmi *kubevirtv1.VirtualMachineInstance) {
		controllerutil.AddFinalizer(vmi, kubevirtv1.VirtualMachineInstanceFinalizer)
		if vmi.Status.Phase == "" {
			vmi.Status.Phase = kubevirtv1.Pending
		}
		if len(vmi.Spec.Networks) == 0 && len(vmi.Spec.Domain.Devices.Interfaces) == 0 && attachesPodNetwork(vmi) {
			vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
			vmi.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}
		}
	})
}

func attachesPodNetwork(vmi *kubevirtv1.VirtualMachineInstance) bool {
	a := vmi.Spec.Domain.Devices.AutoattachPodInterface
	return a == nil || *a
}

func vmiObserved(w *world) *step {
	return w.changeVMI("API version", func(vmi *kubevirtv1.VirtualMachineInstance) {
		for _, a := range observedAnnotations {
			metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, a, observedVersion)
		}
	})
}

func vmiLauncher(w *world) *step {
	if w.vmi.Status.Phase != kubevirtv1.Pending || len(w.launchers) > 0 {
		return nil
	}
	if err := knobsOf(w.vmi).check(); err != nil {
		w.engine.warn(w.vmi, "InvalidAnnotation", err.Error())
		return waits("its annotations are wrong", 0)
	}
	for _, v := range w.vmi.Spec.Volumes {
		if v.ContainerDisk != nil || v.DataVolume != nil || v.PersistentVolumeClaim != nil {
			w.engine.warn(w.vmi, "VolumeIgnored", "volume "+v.Name+" is not used: every guest of the lab is the lab's own, without disks")
		}
	}
	return w.create(w.launcherPod()).on(StageLauncherPod, w.vmi)
}

// vmiUnpausedCondition opens the launchers' readiness gate. The target of a migration gets it when the VM has arrived, see arrived.
func vmiUnpausedCondition(w *world) *step {
	for _, p := range w.launchers {
		if p.Labels[kubevirtv1.MigrationJobLabel] == "" && !down(p) {
			if s := w.unpaused(p); s != nil {
				return s
			}
		}
	}
	return nil
}

func (w *world) unpaused(p *corev1.Pod) *step {
	if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kubevirtv1.VirtualMachineUnpaused }) {
		return nil
	}
	return patch(w, p, "the VM is not paused", w.engine.statusPatch, func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: kubevirtv1.VirtualMachineUnpaused, Status: corev1.ConditionTrue, Reason: "NotPaused", Message: "the virtual machine is not paused",
			LastProbeTime: metav1.NewTime(w.now), LastTransitionTime: metav1.NewTime(w.now),
		})
	})
}

func vmiScheduling(w *world) *step {
	if w.vmi.Status.Phase != kubevirtv1.Pending || len(w.launchers) == 0 {
		return nil
	}
	return w.changeVMI("phase Scheduling", func(vmi *kubevirtv1.VirtualMachineInstance) {
		w.setPhase(vmi, kubevirtv1.Scheduling)
		w.setActivePods(vmi)
		vmi.Status.LauncherContainerImageVersion = launcherVersion
		vmi.Status.RuntimeUser = 107
		overhead := resource.MustParse(memoryOverhead)
		vmi.Status.Memory = &kubevirtv1.MemoryStatus{MemoryOverhead: &overhead}
		w.setCondition(vmi, kubevirtv1.VirtualMachineInstanceCondition{
			Type: kubevirtv1.VirtualMachineInstanceReady, Status: corev1.ConditionFalse, Reason: kubevirtv1.GuestNotRunningReason, Message: guestNotRunning,
		})
	})
}

// vmiActivePods: finished pods are among them as long as they exist.
func vmiActivePods(w *world) *step {
	if w.vmi.Status.Phase == kubevirtv1.Pending {
		return nil
	}
	return w.changeVMI("active pods", w.setActivePods)
}

func (w *world) setActivePods(vmi *kubevirtv1.VirtualMachineInstance) {
	vmi.Status.ActivePods = nil
	for _, p := range w.launchers {
		if vmi.Status.ActivePods == nil {
			vmi.Status.ActivePods = map[types.UID]string{}
		}
		vmi.Status.ActivePods[p.UID] = p.Spec.NodeName
		if p.Status.QOSClass != "" {
			class := p.Status.QOSClass
			vmi.Status.QOSClass = &class
		}
	}
}

func vmiScheduled(w *world) *step {
	pod := w.current()
	if w.vmi.Status.Phase != kubevirtv1.Scheduling || pod == nil || !containersReady(pod) {
		return nil
	}
	return w.changeVMI("phase Scheduled", func(vmi *kubevirtv1.VirtualMachineInstance) {
		w.setPhase(vmi, kubevirtv1.Scheduled)
		metav1.SetMetaDataLabel(&vmi.ObjectMeta, kubevirtv1.NodeNameLabel, pod.Spec.NodeName)
		vmi.Status.NodeName = pod.Spec.NodeName
		vmi.Status.MigrationTransport = kubevirtv1.MigrationTransportUnix
		vmi.Status.Interfaces = nil
		for _, n := range nicsOf(vmi) {
			vmi.Status.Interfaces = append(vmi.Status.Interfaces, kubevirtv1.VirtualMachineInstanceNetworkInterface{Name: n.Name, PodInterfaceName: n.Link})
		}
		for _, v := range vmi.Spec.Volumes {
			vmi.Status.VolumeStatus = append(vmi.Status.VolumeStatus, kubevirtv1.VolumeStatus{Name: v.Name})
		}
	})
}

// vmiNodeLabel: in a migration it follows only when the VM has moved, see arrived.
func vmiNodeLabel(w *world) *step {
	pod := w.current()
	if pod == nil || down(pod) || w.vmi.Status.NodeName == "" || pod.Labels[kubevirtv1.MigrationJobLabel] != "" {
		return nil
	}
	return w.changePod(pod, "node label", func(p *corev1.Pod) {
		metav1.SetMetaDataLabel(&p.ObjectMeta, kubevirtv1.NodeNameLabel, w.vmi.Status.NodeName)
	})
}

// vmiDomain plumbs the pod and starts the guest.
func vmiDomain(w *world) *step {
	pod := w.current()
	if w.vmi.Status.Phase != kubevirtv1.Scheduled || pod == nil || down(pod) {
		return nil
	}
	v := w.view(pod.UID)
	if err := v.failure(requestStart); err != nil {
		w.engine.warn(w.vmi, "SyncFailed", err.Error())
		return nil
	}
	if v.connected && v.State != guest.Idle {
		return nil
	}
	d, nics := w.domain(), nicsOf(w.vmi)
	s := w.request(pod, requestStart, func(ctx context.Context, l Launcher) error {
		if _, err := l.Plumb(ctx, nics); err != nil {
			return err
		}
		return l.Start(ctx, d)
	})
	return s.on(StageStartDomain, w.vmi)
}

func vmiRunning(w *world) *step {
	pod := w.current()
	if w.vmi.Status.Phase != kubevirtv1.Scheduled || pod == nil || w.view(pod.UID).State != guest.Running {
		return nil
	}
	v := w.view(pod.UID)
	return w.changeVMI("phase Running", func(vmi *kubevirtv1.VirtualMachineInstance) {
		w.setPhase(vmi, kubevirtv1.Running)
		vmi.Status.MigrationMethod = kubevirtv1.LiveMigration
		vmi.Status.SelinuxContext = "none"
		w.setCondition(vmi, migratable(vmi))
		for i := range vmi.Status.Interfaces {
			fillInterface(&vmi.Status.Interfaces[i], v.NICs)
		}
	})
}

func fillInterface(i *kubevirtv1.VirtualMachineInstanceNetworkInterface, nics []guest.Plumbed) {
	for _, n := range nics {
		if n.Name != i.Name {
			continue
		}
		i.MAC, i.InfoSource, i.QueueCount, i.IPs = n.MAC, "domain", 1, nil
		for _, a := range n.Addresses {
			i.IPs = append(i.IPs, a.Addr().String())
		}
		if len(i.IPs) > 0 {
			i.IP = i.IPs[0]
		}
	}
}

func vmiReady(w *world) *step {
	if w.vmi.Status.Phase != kubevirtv1.Running {
		return nil
	}
	return w.changeVMI("ready", func(vmi *kubevirtv1.VirtualMachineInstance) {
		w.setCondition(vmi, kubevirtv1.VirtualMachineInstanceCondition{Type: kubevirtv1.VirtualMachineInstanceReady, Status: corev1.ConditionTrue})
	})
}

// migratable is KubeVirt's judgement on the VM's network; nothing else of the lab's guests keeps them from migrating.
func migratable(vmi *kubevirtv1.VirtualMachineInstance) kubevirtv1.VirtualMachineInstanceCondition {
	c := kubevirtv1.VirtualMachineInstanceCondition{Type: kubevirtv1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionTrue}
	pod := slices.IndexFunc(vmi.Spec.Networks, func(n kubevirtv1.Network) bool { return n.Pod != nil })
	if pod < 0 {
		return c
	}
	_, allowed := vmi.Annotations[kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation]
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		if i.Name == vmi.Spec.Networks[pod].Name && i.Masquerade == nil && !allowed {
			c.Status, c.Reason = corev1.ConditionFalse, kubevirtv1.VirtualMachineInstanceReasonInterfaceNotMigratable
			c.Message = "cannot migrate VMI which does not use masquerade, bridge with " + kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation +
				" VMI annotation or a migratable plugin to connect to the pod network"
		}
	}
	return c
}

func conditionTrue(vmi *kubevirtv1.VirtualMachineInstance, t kubevirtv1.VirtualMachineInstanceConditionType) bool {
	return slices.ContainsFunc(vmi.Status.Conditions, func(c kubevirtv1.VirtualMachineInstanceCondition) bool {
		return c.Type == t && c.Status == corev1.ConditionTrue
	})
}

// setCondition leaves one alone that says the same.
func (w *world) setCondition(vmi *kubevirtv1.VirtualMachineInstance, c kubevirtv1.VirtualMachineInstanceCondition) {
	i := slices.IndexFunc(vmi.Status.Conditions, func(o kubevirtv1.VirtualMachineInstanceCondition) bool { return o.Type == c.Type })
	c.LastTransitionTime = metav1.NewTime(w.now)
	switch {
	case i < 0:
		vmi.Status.Conditions = append(vmi.Status.Conditions, c)
	case vmi.Status.Conditions[i].Status != c.Status || vmi.Status.Conditions[i].Reason != c.Reason:
		vmi.Status.Conditions[i] = c
	}
}

func (w *world) setPhase(vmi *kubevirtv1.VirtualMachineInstance, phase kubevirtv1.VirtualMachineInstancePhase) {
	vmi.Status.Phase = phase
	vmi.Status.PhaseTransitionTimestamps = append(vmi.Status.PhaseTransitionTimestamps,
		kubevirtv1.VirtualMachineInstancePhaseTransitionTimestamp{Phase: phase, PhaseTransitionTimestamp: metav1.NewTime(w.now)})
}

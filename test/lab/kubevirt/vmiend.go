package kubevirt

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// nodeTimeout is how old the heartbeat of a VM's node may be.
const nodeTimeout = 5 * time.Minute

// pressEvery is how often the power button of a guest is pressed that is to end.
const pressEvery = 2 * time.Second

// vmiDeletion: the guest is asked to end, its pods are deleted, and when they have ended the VMI goes.
func vmiDeletion(w *world) *step {
	if w.vmi.DeletionTimestamp == nil {
		return nil
	}
	live := false
	for _, p := range w.launchers {
		if down(p) {
			continue
		}
		live = true
		if s := first(w, func(w *world) *step { return w.powerOff(p) }); s != nil && s.do != nil {
			return s
		}
		if p.DeletionTimestamp == nil {
			return w.remove(p, "its VirtualMachineInstance is being deleted")
		}
	}
	for _, p := range w.attachments {
		if p.DeletionTimestamp == nil {
			return w.remove(p, "its VirtualMachineInstance is being deleted")
		}
	}
	if live {
		return waits("its launchers have not ended", time.Second)
	}
	if !vmiFinal(w.vmi) {
		return w.changeVMI("phase Succeeded", func(vmi *kubevirtv1.VirtualMachineInstance) { w.setPhase(vmi, kubevirtv1.Succeeded) })
	}
	return w.changeVMI("finalizer", func(vmi *kubevirtv1.VirtualMachineInstance) {
		controllerutil.RemoveFinalizer(vmi, kubevirtv1.VirtualMachineInstanceFinalizer)
	})
}

// powerOff presses the power button of a guest, and kills it when it takes too long. A launcher without a guest leaves.
func (w *world) powerOff(p *corev1.Pod) *step {
	v := w.view(p.UID)
	if !v.connected || v.State == guest.Ended {
		return nil
	}
	if v.State != guest.Running {
		return w.request(p, requestLeave, func(ctx context.Context, l Launcher) error { return l.Leave(ctx) })
	}
	grace := killAfter
	if s := w.vmi.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	if w.now.Sub(w.vmi.DeletionTimestamp.Time) > grace {
		return w.request(p, requestKill, func(ctx context.Context, l Launcher) error { return l.Leave(ctx) })
	}
	// A guest that boots does not notice the power button.
	press := fmt.Sprintf("%s %d", requestShutdown, w.now.Sub(w.vmi.DeletionTimestamp.Time)/pressEvery)
	return w.request(p, press, func(ctx context.Context, l Launcher) error { return l.Shutdown(ctx) })
}

// vmiEnded: the VMI ends as its launcher did, and fails when that is gone.
func vmiEnded(w *world) *step {
	if vmiFinal(w.vmi) || w.vmi.Status.Phase == kubevirtv1.Pending {
		return nil
	}
	pod := w.current()
	switch {
	case pod == nil:
		return w.fail("its launcher pod is gone")
	case w.nodeDied(pod):
		return w.fail("its node does not report")
	case !down(pod):
		return nil
	case succeeded(pod):
		return w.changeVMI("phase Succeeded: the guest has ended", func(vmi *kubevirtv1.VirtualMachineInstance) { w.setPhase(vmi, kubevirtv1.Succeeded) })
	}
	return w.fail("its launcher has failed")
}

func (w *world) fail(why string) *step {
	return w.changeVMI("phase Failed: "+why, func(vmi *kubevirtv1.VirtualMachineInstance) {
		w.setPhase(vmi, kubevirtv1.Failed)
		w.setCondition(vmi, kubevirtv1.VirtualMachineInstanceCondition{
			Type: kubevirtv1.VirtualMachineInstanceReady, Status: corev1.ConditionFalse, Reason: kubevirtv1.GuestNotRunningReason, Message: guestNotRunning,
		})
	})
}

// succeeded is about a pod that is down.
func succeeded(p *corev1.Pod) bool {
	for i := range p.Status.ContainerStatuses {
		if c := &p.Status.ContainerStatuses[i]; c.Name == computeContainer && c.State.Terminated != nil {
			return c.State.Terminated.ExitCode == 0
		}
	}
	return p.Status.Phase == corev1.PodSucceeded
}

// nodeDied: the node's heartbeat is too old, and the API server does not call the launcher on it alive.
func (w *world) nodeDied(pod *corev1.Pod) bool {
	silent := w.silence()
	return silent > knobsOf(w.vmi).duration(NodeTimeoutAnnotation, nodeTimeout) && (pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning)
}

// silence is for how long the VMI's node has not been ready; 0 when it is.
func (w *world) silence() time.Duration {
	if w.node == nil {
		return 0
	}
	for _, c := range w.node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return w.now.Sub(c.LastHeartbeatTime.Time)
		}
	}
	return 0
}

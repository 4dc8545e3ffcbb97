package kubevirt

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// restartBackoff keeps a VM that fails at once from being started again all the time; counted from its VMI's creation.
const restartBackoff = 5 * time.Second

// vmRules are virt-controller's for VirtualMachines: a VMI is made, or deleted, as the run strategy wants it.
func vmRules(w *world) *step {
	switch {
	case w.vm == nil:
		return nil
	case w.vm.DeletionTimestamp != nil:
		return first(w, vmEnds, vmStatus)
	}
	return first(w, vmFinalizer, vmStarts, vmStops, vmStatus)
}

func vmFinalizer(w *world) *step {
	return w.changeVM("finalizer", func(vm *kubevirtv1.VirtualMachine) {
		controllerutil.AddFinalizer(vm, kubevirtv1.VirtualMachineControllerFinalizer)
	})
}

// vmEnds: the VMI goes first.
func vmEnds(w *world) *step {
	switch {
	case w.ownVMI() && w.vmi.DeletionTimestamp == nil:
		return w.remove(w.vmi, "its VirtualMachine is being deleted")
	case w.ownVMI():
		return nil
	}
	return w.changeVM("finalizer", func(vm *kubevirtv1.VirtualMachine) {
		controllerutil.RemoveFinalizer(vm, kubevirtv1.VirtualMachineControllerFinalizer)
	})
}

// ownVMI: there is a VMI, and it is this VirtualMachine's.
func (w *world) ownVMI() bool {
	return w.vmi != nil && w.vm != nil && metav1.IsControlledBy(w.vmi, w.vm)
}

// strategy is Halted where the specification contradicts itself; KubeVirt's webhook refuses that.
func (w *world) strategy() kubevirtv1.VirtualMachineRunStrategy {
	s, err := w.vm.RunStrategy()
	if err != nil {
		return kubevirtv1.RunStrategyHalted
	}
	return s
}

// requested returns the first request of virtctl start, stop or restart that has not been fulfilled.
func (w *world) requested() kubevirtv1.StateChangeRequestAction {
	if len(w.vm.Status.StateChangeRequests) == 0 {
		return ""
	}
	r := w.vm.Status.StateChangeRequests[0]
	switch {
	case r.Action == kubevirtv1.StopRequest && (w.vmi == nil || r.UID != nil && *r.UID != w.vmi.UID):
		return ""
	case r.Action == kubevirtv1.StartRequest && w.vmi != nil:
		return ""
	}
	return r.Action
}

func vmStarts(w *world) *step {
	if w.vmi != nil {
		return nil
	}
	switch w.strategy() {
	case kubevirtv1.RunStrategyAlways, kubevirtv1.RunStrategyRerunOnFailure:
	case kubevirtv1.RunStrategyOnce:
		if w.vm.Status.RunStrategy == kubevirtv1.RunStrategyOnce && w.vm.Status.PrintableStatus != kubevirtv1.VirtualMachineStatusStarting {
			return nil
		}
	default:
		if w.requested() != kubevirtv1.StartRequest {
			return nil
		}
	}
	return w.create(newVMI(w.vm))
}

func newVMI(vm *kubevirtv1.VirtualMachine) *kubevirtv1.VirtualMachineInstance {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	if t := vm.Spec.Template; t != nil {
		vmi.ObjectMeta = *t.ObjectMeta.DeepCopy()
		vmi.Spec = *t.Spec.DeepCopy()
	}
	for _, name := range absent(vmi) {
		dropNIC(&vmi.Spec, name)
	}
	vmi.Name, vmi.Namespace, vmi.GenerateName = vm.Name, vm.Namespace, ""
	vmi.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(vm, kubevirtv1.VirtualMachineGroupVersionKind)}
	if vmi.Spec.Domain.Firmware == nil {
		vmi.Spec.Domain.Firmware = &kubevirtv1.Firmware{}
	}
	if vmi.Spec.Domain.Firmware.UUID == "" {
		vmi.Spec.Domain.Firmware.UUID = vm.UID // the same at every start
	}
	return vmi
}

// vmStops deletes a VMI that is not wanted, or that has ended and is to be started again.
func vmStops(w *world) *step {
	if !w.ownVMI() || w.vmi.DeletionTimestamp != nil {
		return nil
	}
	again := false
	switch w.strategy() {
	case kubevirtv1.RunStrategyHalted:
		return w.remove(w.vmi, "the VirtualMachine is halted")
	case kubevirtv1.RunStrategyAlways:
		again = vmiFinal(w.vmi)
	case kubevirtv1.RunStrategyRerunOnFailure:
		again = w.vmi.Status.Phase == kubevirtv1.Failed
	default:
	}
	if w.requested() == kubevirtv1.StopRequest {
		return w.remove(w.vmi, "a stop was asked for")
	}
	if !again {
		return nil
	}
	if left := restartBackoff - w.now.Sub(w.vmi.CreationTimestamp.Time); left > 0 {
		return waits("it failed very early", left)
	}
	return w.remove(w.vmi, "it has ended, and is to be started again")
}

func vmStatus(w *world) *step {
	return patch(w, w.vm, "status", w.engine.statusPatch, func(vm *kubevirtv1.VirtualMachine) {
		vm.Status.Created = w.vmi != nil
		vm.Status.Ready = w.vmi != nil && conditionTrue(w.vmi, kubevirtv1.VirtualMachineInstanceReady)
		vm.Status.PrintableStatus = printable(w)
		vm.Status.RunStrategy = w.strategy()
		vm.Status.ObservedGeneration = vm.Generation
		if len(vm.Status.StateChangeRequests) > 0 && w.requested() == "" {
			vm.Status.StateChangeRequests = vm.Status.StateChangeRequests[1:]
		}
		c := kubevirtv1.VirtualMachineCondition{
			Type: kubevirtv1.VirtualMachineReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(w.now),
		}
		if !vm.Status.Ready {
			c.Status, c.Reason, c.Message = corev1.ConditionFalse, "VMINotExists", "VMI does not exist"
			if w.vmi != nil {
				c.Reason, c.Message = kubevirtv1.GuestNotRunningReason, guestNotRunning
			}
		}
		i := slices.IndexFunc(vm.Status.Conditions, func(o kubevirtv1.VirtualMachineCondition) bool { return o.Type == c.Type })
		switch {
		case i < 0:
			vm.Status.Conditions = append(vm.Status.Conditions, c)
		case vm.Status.Conditions[i].Status != c.Status || vm.Status.Conditions[i].Reason != c.Reason:
			vm.Status.Conditions[i] = c
		}
	})
}

// printable is the word that kubectl get vm shows.
func printable(w *world) kubevirtv1.VirtualMachinePrintableStatus {
	s := w.state()
	switch {
	case w.vm.DeletionTimestamp != nil:
		return kubevirtv1.VirtualMachineStatusTerminating
	case w.vmi == nil && (w.strategy() == kubevirtv1.RunStrategyAlways || w.strategy() == kubevirtv1.RunStrategyRerunOnFailure):
		return kubevirtv1.VirtualMachineStatusStarting
	case w.vmi == nil, vmiFinal(w.vmi):
		return kubevirtv1.VirtualMachineStatusStopped
	case w.vmi.DeletionTimestamp != nil:
		return kubevirtv1.VirtualMachineStatusStopping
	case w.vmi.Status.Phase != kubevirtv1.Running:
		return kubevirtv1.VirtualMachineStatusStarting
	case s.StartTimestamp != nil && s.EndTimestamp == nil && !s.Completed:
		return kubevirtv1.VirtualMachineStatusMigrating
	}
	return kubevirtv1.VirtualMachineStatusRunning
}

func (w *world) changeVM(why string, change func(vm *kubevirtv1.VirtualMachine)) *step {
	return patch(w, w.vm, why, w.engine.api.Patch, change)
}

package controller

import (
	"slices"

	kubevirtv1 "kubevirt.io/api/core/v1"
)

// What KubeVirt does with a VM without being asked once more, by its run strategy and by what it was asked for before: as KubeVirt 1.9 does, in syncRunStrategy of pkg/virt-controller/watch/vm/vm.go.

// strategy is the VM's, RunStrategyUnknown where its specification contradicts itself: KubeVirt refuses that.
func (o operation) strategy() kubevirtv1.VirtualMachineRunStrategy {
	strategy, err := o.vm.RunStrategy()
	if err != nil {
		return kubevirtv1.RunStrategyUnknown
	}
	return strategy
}

// lives says whether the VM has an instance that has not ended.
func (o operation) lives() bool {
	return o.vmi != nil && !o.vmi.IsFinal()
}

// startAsked says whether a start, or a restart, was asked for that KubeVirt has not come to yet.
func (o operation) startAsked() bool {
	return slices.ContainsFunc(o.vm.Status.StateChangeRequests, func(r kubevirtv1.VirtualMachineStateChangeRequest) bool { return r.Action == kubevirtv1.StartRequest })
}

// stopAsked is the like of a stop, or a restart, of the instance that there is.
func (o operation) stopAsked() bool {
	return o.vmi != nil && slices.ContainsFunc(o.vm.Status.StateChangeRequests, func(r kubevirtv1.VirtualMachineStateChangeRequest) bool {
		return r.Action == kubevirtv1.StopRequest && r.UID != nil && *r.UID == o.vmi.UID
	})
}

// ends says whether the VM has an instance that has not ended, and will.
func (o operation) ends() bool {
	return o.lives() && (o.vmi.DeletionTimestamp != nil || o.vm.DeletionTimestamp != nil || o.stopAsked() || o.strategy() == kubevirtv1.RunStrategyHalted)
}

// revives says of a VM without an instance, or with one that has ended or ends, whether KubeVirt makes the next one by itself.
func (o operation) revives() bool {
	if o.vm.DeletionTimestamp != nil {
		return false
	}
	switch strategy := o.strategy(); strategy {
	case kubevirtv1.RunStrategyAlways:
		return true
	case kubevirtv1.RunStrategyOnce: // an instance that has ended stays
		return o.vmi == nil || o.vmi.DeletionTimestamp != nil
	case kubevirtv1.RunStrategyRerunOnFailure:
		if o.vmi == nil { // it is started once by that strategy alone: status has the strategy from then on
			return o.startAsked() || o.vm.Status.RunStrategy != strategy
		}
		if o.vmi.Status.Phase == kubevirtv1.Failed { // it is deleted, and a start asked for a moment later; of one that failed while it was stopped that is known when it is gone
			return true
		}
	}
	return o.startAsked()
}

// stoppable says whether KubeVirt agrees to a stop now, and it stays at that: StopVMRequestHandler in pkg/virt-api/rest/lifecycle.go. With the strategies Manual and RerunOnFailure it stops an instance, and forgets what
// else was asked for; with the others it makes the strategy Halted, which a start that was asked for before makes Always again.
func (o operation) stoppable() bool {
	switch o.strategy() {
	case kubevirtv1.RunStrategyManual, kubevirtv1.RunStrategyRerunOnFailure:
		return o.lives()
	}
	return !o.startAsked()
}

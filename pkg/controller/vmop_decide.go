package controller

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// Reasons of an operation's phase.
const (
	opWaiting     = "Waiting"     // for what KubeVirt makes of it
	opDone        = "Done"        // by this operation
	opNothingToDo = "NothingToDo" // the VM is as it was asked for
	opNoVM        = "VMNotFound"
	opNoNode      = "NodeNotFound"
	opNotRunning  = "NotRunning"
	opBusy        = "MigrationRunning" // another migration of the VM is under way
	opRefused     = "Refused"          // KubeVirt did not agree
	opUndone      = "Undone"           // KubeVirt agreed, and somebody has asked for the contrary since
	opMigration   = "MigrationFailed"
	opCancelled   = "MigrationCancelled" // somebody has deleted it
	opLater       = "LaterOperation"
)

// operation is all that a decision about one VirtualMachineOperation is made from.
type operation struct {
	op *v1alpha1.VirtualMachineOperation
	// vm is the VM, nil if there is none of the name. vmi is its instance, nil if it has none: read after the VM, for what KubeVirt was asked for leaves its status when the instance is there.
	vm  *kubevirtv1.VirtualMachine
	vmi *kubevirtv1.VirtualMachineInstance
	// vmim is the operation's own migration, nil if there is none; busy is the name of another that is not over.
	vmim *kubevirtv1.VirtualMachineInstanceMigration
	busy string
	// node: there is a node of the target's name.
	node bool
	// later is the name of a later operation that starts, stops or restarts the VM; earlier is that of an earlier one which is not over, and may be about to ask KubeVirt.
	later, earlier string
}

// opVerdict is what an operation is now, and whether KubeVirt is to be asked.
type opVerdict struct {
	phase           v1alpha1.OperationPhase
	reason, message string
	progress        int32
	ask             bool
}

func opEnds(phase v1alpha1.OperationPhase, reason, format string, args ...any) opVerdict {
	v := opVerdict{phase: phase, reason: reason, message: fmt.Sprintf(format, args...)}
	if phase == v1alpha1.OperationCompleted {
		v.progress = 100
	}
	return v
}

// decide judges an operation that is not over. It asks KubeVirt again as long as it has not agreed: what the VM has become since says whether it need be asked.
func (o operation) decide() opVerdict {
	name := o.op.Spec.VirtualMachine
	switch {
	case o.later != "":
		return opEnds(v1alpha1.OperationSuperseded, opLater, "operation %s came later; what KubeVirt was asked for goes its way", o.later)
	case o.vm == nil:
		return opEnds(v1alpha1.OperationFailed, opNoVM, "there is no VirtualMachine %s in the namespace", name)
	case o.earlier != "":
		return o.waits(0, "operation %s came before, and is not over", o.earlier)
	}
	switch o.op.Spec.Type {
	case v1alpha1.OperationStart:
		return o.start()
	case v1alpha1.OperationStop:
		return o.stop()
	case v1alpha1.OperationRestart:
		return o.restart()
	}
	return o.migrate()
}

func (o operation) waits(progress int32, format string, args ...any) opVerdict {
	return opVerdict{phase: v1alpha1.OperationInProgress, reason: opWaiting, message: fmt.Sprintf(format, args...), progress: progress}
}

func (o operation) request(format string, args ...any) opVerdict {
	v := o.waits(0, format, args...)
	v.ask = !o.op.Status.Requested
	return v
}

// instance is the UID of the VM's instance, empty if it has none.
func (o operation) instance() types.UID {
	if o.vmi == nil {
		return ""
	}
	return o.vmi.UID
}

// runs says whether the VM has an instance that is up.
func (o operation) runs() bool {
	return o.vmi != nil && o.vmi.Status.Phase == kubevirtv1.Running && o.vmi.DeletionTimestamp == nil
}

// done is the end of an operation whose aim is reached.
func (o operation) done(format string, args ...any) opVerdict {
	if !o.op.Status.Requested {
		return opEnds(v1alpha1.OperationCompleted, opNothingToDo, format, args...)
	}
	return opEnds(v1alpha1.OperationCompleted, opDone, format, args...)
}

// state is what there is of the VM's instance, in words.
func (o operation) state() string {
	if o.vmi == nil {
		return "the VM has no instance"
	}
	return fmt.Sprintf("the VM's instance is %s", cmp.Or(o.vmi.Status.Phase, kubevirtv1.Pending))
}

// start asks KubeVirt where the VM has no instance that goes on, and gets none by itself: before one that ends is gone it does not agree.
func (o operation) start() opVerdict {
	switch asked := o.op.Status.Requested; {
	case o.runs() && (asked || !o.ends()):
		return o.done("the VM runs on node %s", o.vmi.Status.NodeName)
	case o.lives() && !o.ends():
		return o.waits(50, "%s", o.state())
	case o.revives():
		return o.waits(20, "%s, and KubeVirt makes the next", o.state())
	case asked:
		return opEnds(v1alpha1.OperationFailed, opNotRunning, "the VM was started and has not come up: %s", o.state())
	case o.lives() || o.vmi != nil && o.vmi.DeletionTimestamp != nil || len(o.vm.Status.StateChangeRequests) > 0:
		return o.waits(0, "%s, and KubeVirt stops the VM: it is asked to start it when that is done", o.state())
	}
	return o.request("%s", o.state())
}

// stop asks KubeVirt also where the VM has no instance, or one that has ended, if it would get another. What KubeVirt has agreed to shows in the VM and its instance at once: an instance that goes on after that was
// started again, or is to go on by somebody's word.
func (o operation) stop() opVerdict {
	switch before := o.op.Status.Instance; {
	case !o.lives() && !o.revives():
		return o.done("the VM does not run")
	case o.ends() && !o.revives():
		return o.waits(50, "%s, and ends", o.state())
	case o.op.Status.Requested && o.lives() && !o.ends() && before != "" && o.instance() != before:
		return o.done("the VM was stopped, and has been started again since")
	case o.op.Status.Requested && o.lives() && !o.ends():
		return opEnds(v1alpha1.OperationFailed, opUndone, "KubeVirt agreed to stop the VM, and somebody has asked for the contrary since: its run strategy is %s", o.strategy())
	case !o.stoppable():
		return o.waits(0, "%s, and KubeVirt makes the next: it is asked when that is there", o.state())
	}
	return o.request("%s", o.state())
}

// restart asks KubeVirt where the instance of before goes on; one that has ended, or is being stopped, is not restarted.
func (o operation) restart() opVerdict {
	switch before := o.op.Status.Instance; {
	case before == "" && o.vmi == nil && !o.revives():
		return opEnds(v1alpha1.OperationFailed, opNotRunning, "the VM has no instance: start it")
	case o.instance() != before && o.runs():
		return opEnds(v1alpha1.OperationCompleted, opDone, "the VM runs anew on node %s", o.vmi.Status.NodeName)
	case o.lives() && !o.ends() && o.instance() == before:
		return o.request("the VM's instance is that of before")
	case o.lives() && !o.ends():
		return o.waits(60, "the VM's new instance is %s", o.vmi.Status.Phase)
	case o.revives():
		return o.waits(30, "%s, and KubeVirt makes the next", o.state())
	}
	return opEnds(v1alpha1.OperationFailed, opNotRunning, "%s, and KubeVirt makes no other: start the VM", o.state())
}

// opProgress is how far a migration is by its phase, of 100.
var opProgress = map[kubevirtv1.VirtualMachineInstanceMigrationPhase]int32{
	kubevirtv1.MigrationPending: 5, kubevirtv1.MigrationScheduling: 10, kubevirtv1.MigrationScheduled: 20, kubevirtv1.MigrationPreparingTarget: 30,
	kubevirtv1.MigrationTargetReady: 40, kubevirtv1.MigrationRunning: 60,
}

func (o operation) migrate() opVerdict {
	target := o.op.Spec.TargetNode
	if o.vmim == nil {
		switch {
		case o.op.Status.Requested:
			return opEnds(v1alpha1.OperationFailed, opCancelled, "migration %s is gone: somebody has deleted it", o.op.Status.Migration)
		case !o.runs():
			return opEnds(v1alpha1.OperationFailed, opNotRunning, "the VM has no instance that runs: only that can migrate")
		case target != "" && o.vmi.Status.NodeName == target:
			return o.done("the VM runs on node %s", target)
		case target != "" && !o.node:
			return opEnds(v1alpha1.OperationFailed, opNoNode, "there is no node %s", target)
		case o.busy != "":
			return opEnds(v1alpha1.OperationFailed, opBusy, "migration %s of the VM is not over: wait for its end", o.busy)
		}
		return o.request("the VM runs on node %s", o.vmi.Status.NodeName)
	}
	switch o.vmim.Status.Phase {
	case kubevirtv1.MigrationSucceeded:
		return opEnds(v1alpha1.OperationCompleted, opDone, "migration %s succeeded", o.vmim.Name)
	case kubevirtv1.MigrationFailed:
		return opEnds(v1alpha1.OperationFailed, opMigration, "migration %s failed%s", o.vmim.Name, o.failure())
	}
	return o.waits(max(opProgress[o.vmim.Status.Phase], opProgress[kubevirtv1.MigrationPending]), "migration %s is %s", o.vmim.Name, o.vmim.Status.Phase)
}

// failure is why the operation's migration failed, if KubeVirt says it.
func (o operation) failure() string {
	for _, state := range []*kubevirtv1.VirtualMachineInstanceMigrationState{o.vmim.Status.MigrationState, o.instanceState()} {
		if state != nil && state.FailureReason != "" && state.MigrationUID == o.vmim.UID {
			return ": " + state.FailureReason
		}
	}
	return ""
}

func (o operation) instanceState() *kubevirtv1.VirtualMachineInstanceMigrationState {
	if o.vmi == nil {
		return nil
	}
	return o.vmi.Status.MigrationState
}

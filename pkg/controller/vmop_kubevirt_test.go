package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// simVM is a VM in KubeVirt 1.9: what virt-api answers (pkg/virt-api/rest/lifecycle.go), and what virt-controller and virt-handler do with it (pkg/virt-controller/watch/vm/vm.go), a step at a time.
type simVM struct {
	*rand.Rand
	vm   kubevirtv1.VirtualMachine
	vmi  *kubevirtv1.VirtualMachineInstance
	made int
}

var errUnderway = apierrors.NewInternalError(errors.New("unable to complete request: stop/start already underway"))

func notAgreed(format string, args ...any) error {
	return apierrors.NewConflict(schema.GroupResource{Group: "kubevirt.io", Resource: "virtualmachine"}, "vm", fmt.Errorf(format, args...))
}

func (s *simVM) strategy() kubevirtv1.VirtualMachineRunStrategy { return *s.vm.Spec.RunStrategy }

func (s *simVM) become(strategy kubevirtv1.VirtualMachineRunStrategy) error {
	s.vm.Spec.RunStrategy = &strategy
	return nil
}

func (s *simVM) manual() bool {
	return s.strategy() == kubevirtv1.RunStrategyManual || s.strategy() == kubevirtv1.RunStrategyRerunOnFailure
}

func (s *simVM) final() bool { return s.vmi == nil || s.vmi.IsFinal() }

func (s *simVM) instance() string {
	if s.vmi == nil {
		return "none"
	}
	return fmt.Sprintf("%s %s, deleted: %v", s.vmi.UID, s.vmi.Status.Phase, s.vmi.DeletionTimestamp != nil)
}

// note has requests written into the VM's status, or not.
func (s *simVM) note(actions ...kubevirtv1.StateChangeRequestAction) error {
	requests := &s.vm.Status.StateChangeRequests
	if len(*requests) > 0 && (len(actions) > 1 || actions[0] != kubevirtv1.StopRequest) {
		return errUnderway
	}
	*requests = nil
	for _, a := range actions {
		r := kubevirtv1.VirtualMachineStateChangeRequest{Action: a}
		if a == kubevirtv1.StopRequest {
			uid := s.vmi.UID
			r.UID = &uid
		}
		*requests = append(*requests, r)
	}
	return nil
}

// asked is virt-api.
func (s *simVM) asked(what v1alpha1.OperationType) error {
	const start, stop = kubevirtv1.StartRequest, kubevirtv1.StopRequest
	strategy := s.strategy()
	switch what {
	case v1alpha1.OperationStart:
		switch {
		case !s.final() && s.vmi.Status.Phase != "":
			return notAgreed("VM is already running")
		case strategy == kubevirtv1.RunStrategyHalted:
			return s.become(kubevirtv1.RunStrategyAlways)
		case !s.manual():
			return notAgreed("%s does not support manual start requests", strategy)
		case s.vmi == nil, !s.final():
			return s.note(start)
		case strategy == kubevirtv1.RunStrategyRerunOnFailure && s.vmi.Status.Phase == kubevirtv1.Failed:
			return notAgreed("%s does not support starting VM from failed state", strategy)
		}
		return s.note(stop, start)
	case v1alpha1.OperationStop:
		switch {
		case strategy == kubevirtv1.RunStrategyAlways, strategy == kubevirtv1.RunStrategyOnce:
			return s.become(kubevirtv1.RunStrategyHalted)
		case s.final():
			return notAgreed("VM is not running")
		case strategy == kubevirtv1.RunStrategyHalted:
			return notAgreed("%s only supports manual stop requests with a shorter graceperiod", strategy)
		}
		return s.note(stop)
	}
	switch {
	case strategy == kubevirtv1.RunStrategyHalted, strategy == kubevirtv1.RunStrategyOnce:
		return notAgreed("RunStategy %s does not support manual restart requests", strategy)
	case s.vmi == nil:
		return notAgreed("VM is not running")
	}
	return s.note(stop, start)
}

// sync is virt-controller, which looks at the VM once.
func (s *simVM) sync() {
	requests, strategy := s.vm.Status.StateChangeRequests, s.strategy()
	first := kubevirtv1.VirtualMachineStateChangeRequest{}
	if len(requests) > 0 {
		first = requests[0]
	}
	start, stop := first.Action == kubevirtv1.StartRequest, s.vmi != nil && first.Action == kubevirtv1.StopRequest && *first.UID == s.vmi.UID
	switch {
	case s.vmi == nil:
		switch strategy {
		case kubevirtv1.RunStrategyHalted:
			if start {
				_ = s.become(kubevirtv1.RunStrategyAlways)
			}
			start = false
		case kubevirtv1.RunStrategyManual:
		case kubevirtv1.RunStrategyRerunOnFailure:
			start = start || s.vm.Status.RunStrategy != strategy
		default:
			start = true
		}
		if start {
			s.made++
			s.vmi = &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprint(s.made))}}
		}
	case s.vmi.DeletionTimestamp != nil:
	case strategy == kubevirtv1.RunStrategyHalted, stop && strategy != kubevirtv1.RunStrategyOnce, strategy == kubevirtv1.RunStrategyAlways && s.final(), strategy == kubevirtv1.RunStrategyRerunOnFailure && s.final():
		s.vmi.DeletionTimestamp = &metav1.Time{}
		if strategy == kubevirtv1.RunStrategyRerunOnFailure && s.vmi.Status.Phase == kubevirtv1.Failed {
			s.vm.Status.StateChangeRequests = append(s.vm.Status.StateChangeRequests, kubevirtv1.VirtualMachineStateChangeRequest{Action: kubevirtv1.StartRequest})
		}
	}
	if s.vm.Status.RunStrategy != "" || s.vmi != nil {
		s.vm.Status.RunStrategy = strategy
	}
	if first.Action == kubevirtv1.StartRequest && !s.final() && s.vmi.DeletionTimestamp == nil || first.Action == kubevirtv1.StopRequest && !stop {
		s.vm.Status.StateChangeRequests = s.vm.Status.StateChangeRequests[1:]
	}
}

// step is something that happens, which nobody has asked for now.
func (s *simVM) step() {
	if s.vmi == nil || s.IntN(2) == 0 {
		s.sync()
		return
	}
	switch phase := &s.vmi.Status.Phase; {
	case s.vmi.DeletionTimestamp != nil && s.final():
		s.vmi = nil
	case s.vmi.DeletionTimestamp != nil:
		*phase = []kubevirtv1.VirtualMachineInstancePhase{kubevirtv1.Succeeded, kubevirtv1.Failed}[s.IntN(2)]
	case *phase == "":
		*phase = kubevirtv1.Scheduling
	case *phase == kubevirtv1.Scheduling:
		*phase = kubevirtv1.Running
	}
}

// disturb is what a guest, or somebody, does to a VM.
func (s *simVM) disturb() {
	switch what := s.IntN(6); {
	case what < 3:
		_ = s.asked([]v1alpha1.OperationType{v1alpha1.OperationStart, v1alpha1.OperationStop, v1alpha1.OperationRestart}[what])
	case s.vmi == nil || s.vmi.DeletionTimestamp != nil:
	case what == 3:
		s.vmi.DeletionTimestamp = &metav1.Time{}
	case len(s.vm.Status.StateChangeRequests) > 0: // an instance that ends before its start is struck out is none that KubeVirt starts, or stops, any more
	case what == 4:
		s.vmi.Status.Phase = kubevirtv1.Failed
	default:
		s.vmi.Status.Phase = kubevirtv1.Succeeded
	}
}

// operate carries an operation out in what happens to the VM, some of whose answers are lost, and returns it as it ends.
func (s *simVM) operate(t *testing.T, kind v1alpha1.OperationType) (opVerdict, types.UID) {
	t.Helper()
	op := &v1alpha1.VirtualMachineOperation{Spec: v1alpha1.VirtualMachineOperationSpec{VirtualMachine: "vm", Type: kind}}
	o := func() operation { return operation{op: op, vm: &s.vm, vmi: s.vmi} }
	op.Status.Instance = o().instance()
	for range 400 {
		v := o().decide()
		if v.ask {
			switch err := s.asked(kind); {
			case err == nil:
				op.Status.Requested = s.IntN(3) > 0
			case apierrors.IsConflict(err):
				v = opEnds(v1alpha1.OperationFailed, opRefused, "%v", err)
			} // else it is asked again
		}
		if v.phase.Final() {
			return v, op.Status.Instance
		}
		for range s.IntN(3) {
			s.step()
		}
	}
	t.Fatalf("%s of a VM with strategy %s, requests %+v, status %s does not end: %+v", kind, s.strategy(), s.vm.Status.StateChangeRequests, s.vm.Status.RunStrategy, o().decide())
	return opVerdict{}, ""
}

// Whatever a VM has gone through, an operation on it ends, and what it says is so, and stays so. KubeVirt refuses nothing but what it never agrees to.
func TestOperationInKubeVirt(t *testing.T) {
	for seed := range uint64(20000) {
		s := &simVM{Rand: rand.New(rand.NewPCG(seed, 17))}
		strategies := []kubevirtv1.VirtualMachineRunStrategy{
			kubevirtv1.RunStrategyHalted, kubevirtv1.RunStrategyManual, kubevirtv1.RunStrategyAlways, kubevirtv1.RunStrategyRerunOnFailure, kubevirtv1.RunStrategyOnce,
		}
		_ = s.become(strategies[seed%5])
		for range s.IntN(20) {
			s.step()
			if s.IntN(4) == 0 {
				s.disturb()
			}
		}
		kind := []v1alpha1.OperationType{v1alpha1.OperationStart, v1alpha1.OperationStop, v1alpha1.OperationRestart}[s.IntN(3)]
		was := fmt.Sprintf("seed %d: %s of a VM with strategy %s, requests %+v, instance %s", seed, kind, s.strategy(), s.vm.Status.StateChangeRequests, s.instance())
		once := s.strategy() == kubevirtv1.RunStrategyOnce
		v, before := s.operate(t, kind)
		runs := s.vmi != nil && s.vmi.Status.Phase == kubevirtv1.Running
		switch {
		case v.reason == opRefused && once && kind != v1alpha1.OperationStop, kind == v1alpha1.OperationRestart && v.reason == opNotRunning:
		case v.phase != v1alpha1.OperationCompleted:
			t.Errorf("%s: %+v", was, v)
		case kind == v1alpha1.OperationRestart && (!runs || s.vmi.UID == before), kind == v1alpha1.OperationStart && !runs:
			t.Errorf("%s: %+v, and the instance is %s", was, v, s.instance())
		}
		for range 50 {
			s.step()
		}
		if up := !s.final(); kind == v1alpha1.OperationStop && up || v.phase == v1alpha1.OperationCompleted && kind != v1alpha1.OperationStop && !up {
			t.Errorf("%s: %+v, and later the instance is %s", was, v, s.instance())
		}
		if t.Failed() {
			return
		}
	}
}

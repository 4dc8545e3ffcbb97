package controller

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestDecideOperation(t *testing.T) {
	vmi := func(uid types.UID, phase kubevirtv1.VirtualMachineInstancePhase, ends bool) *kubevirtv1.VirtualMachineInstance {
		v := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: kubevirtv1.VirtualMachineInstanceStatus{Phase: phase, NodeName: "n1"}}
		if ends {
			v.DeletionTimestamp = &metav1.Time{}
		}
		return v
	}
	vmim := func(phase kubevirtv1.VirtualMachineInstanceMigrationPhase) *kubevirtv1.VirtualMachineInstanceMigration {
		return &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Status: kubevirtv1.VirtualMachineInstanceMigrationStatus{Phase: phase}}
	}
	was := func(requested bool) v1alpha1.VirtualMachineOperationStatus {
		return v1alpha1.VirtualMachineOperationStatus{Phase: v1alpha1.OperationInProgress, Instance: "a", Requested: requested}
	}
	running, other := vmi("a", kubevirtv1.Running, false), vmi("b", kubevirtv1.Running, false)
	const (
		progress  = v1alpha1.OperationInProgress
		completed = v1alpha1.OperationCompleted
		failed    = v1alpha1.OperationFailed
	)
	vm := func(strategy kubevirtv1.VirtualMachineRunStrategy, asked ...kubevirtv1.StateChangeRequestAction) *kubevirtv1.VirtualMachine {
		v := &kubevirtv1.VirtualMachine{Spec: kubevirtv1.VirtualMachineSpec{RunStrategy: &strategy}, Status: kubevirtv1.VirtualMachineStatus{RunStrategy: strategy}}
		for _, action := range asked {
			v.Status.StateChangeRequests = append(v.Status.StateChangeRequests, kubevirtv1.VirtualMachineStateChangeRequest{Action: action, UID: &running.UID})
		}
		return v
	}
	const (
		asksStart, asksStop = kubevirtv1.StartRequest, kubevirtv1.StopRequest
		start, stop         = v1alpha1.OperationStart, v1alpha1.OperationStop
		restart             = v1alpha1.OperationRestart
	)
	halted, always, manual, once := vm(kubevirtv1.RunStrategyHalted), vm(kubevirtv1.RunStrategyAlways), vm(kubevirtv1.RunStrategyManual), vm(kubevirtv1.RunStrategyOnce)
	rerun, unrun := vm(kubevirtv1.RunStrategyRerunOnFailure), vm(kubevirtv1.RunStrategyRerunOnFailure)
	unrun.Status.RunStrategy = ""
	deleted := always.DeepCopy()
	deleted.DeletionTimestamp = &metav1.Time{}
	ending, failing, succeeded := vmi("a", kubevirtv1.Running, true), vmi("a", kubevirtv1.Failed, false), vmi("a", kubevirtv1.Succeeded, false)
	for _, c := range []struct {
		what   string
		kind   v1alpha1.OperationType
		o      operation
		status v1alpha1.VirtualMachineOperationStatus
		phase  v1alpha1.OperationPhase
		reason string
		ask    bool
	}{
		{"no VM", start, operation{}, was(false), failed, opNoVM, false},
		{"a later one", start, operation{vm: halted, later: "x"}, was(true), v1alpha1.OperationSuperseded, opLater, false},
		{"an earlier one that may ask yet", stop, operation{vm: halted, earlier: "x"}, was(false), progress, opWaiting, false},
		{"start", start, operation{vm: halted}, was(false), progress, opWaiting, true},
		{"start, asked", start, operation{vm: always}, was(true), progress, opWaiting, false},
		{"start, on its way", start, operation{vm: always, vmi: vmi("a", kubevirtv1.Scheduling, false)}, was(true), progress, opWaiting, false},
		{"start, after one that ended", start, operation{vm: manual, vmi: succeeded}, was(false), progress, opWaiting, true},
		{"start, after one that ends", start, operation{vm: halted, vmi: ending}, was(false), progress, opWaiting, false},
		{"start, after a stop that KubeVirt comes to in a moment", start, operation{vm: halted, vmi: running}, was(false), progress, opWaiting, false},
		{"start, after the like of an instance", start, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStop), vmi: running}, was(false), progress, opWaiting, false},
		{"start, after a stop that is still noted down", start, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStop)}, was(false), progress, opWaiting, false},
		{"start of what crashes", start, operation{vm: always, vmi: failing}, was(false), progress, opWaiting, false},
		{"start of what has run once", start, operation{vm: once, vmi: succeeded}, was(false), progress, opWaiting, true}, // which KubeVirt refuses
		{"start, runs", start, operation{vm: always, vmi: running}, was(true), completed, opDone, false},
		{"start of what runs", start, operation{vm: always, vmi: running}, was(false), completed, opNothingToDo, false},
		{"start, failed at once", start, operation{vm: manual, vmi: vmi("b", kubevirtv1.Failed, false)}, was(true), failed, opNotRunning, false},
		{"start, stopped by somebody", start, operation{vm: halted}, was(true), failed, opNotRunning, false},
		{"stop", stop, operation{vm: always, vmi: running}, was(false), progress, opWaiting, true},
		{"stop, ends", stop, operation{vm: halted, vmi: ending}, was(true), progress, opWaiting, false},
		{"stop, gone", stop, operation{vm: halted}, was(true), completed, opDone, false},
		{"stop, undone", stop, operation{vm: always, vmi: running}, was(true), failed, opUndone, false},
		{"stop, undone while the instance ends", stop, operation{vm: always, vmi: ending}, was(true), progress, opWaiting, false},
		{"stop, and started again", stop, operation{vm: always, vmi: other}, was(true), completed, opDone, false},
		{"stop of what failed meanwhile and is not rerun", stop, operation{vm: rerun, vmi: failing}, was(true), progress, opWaiting, false},
		{"stop of what does not run", stop, operation{vm: halted}, was(false), completed, opNothingToDo, false},
		{"stop of what has ended", stop, operation{vm: manual, vmi: succeeded}, was(false), completed, opNothingToDo, false},
		{"stop of what has run once", stop, operation{vm: once, vmi: failing}, was(false), completed, opNothingToDo, false},
		{"stop of what runs once in a moment", stop, operation{vm: once}, was(false), progress, opWaiting, true},
		{"stop of what crashes", stop, operation{vm: always, vmi: failing}, was(false), progress, opWaiting, true},
		{"stop of what crashes, between", stop, operation{vm: always}, was(false), progress, opWaiting, true},
		{"stop of what is made anew", stop, operation{vm: always, vmi: ending}, was(false), progress, opWaiting, true},
		{"stop of what starts in a moment", stop, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStart)}, was(false), progress, opWaiting, false},
		{"stop in a restart", stop, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStop, asksStart), vmi: ending}, was(false), progress, opWaiting, true},
		{"stop in a restart that would undo it", stop, operation{vm: vm(kubevirtv1.RunStrategyAlways, asksStop, asksStart), vmi: ending}, was(false), progress, opWaiting, false},
		{"stop of what is rerun", stop, operation{vm: rerun, vmi: failing}, was(false), progress, opWaiting, false},
		{"stop of what is not run yet", stop, operation{vm: unrun}, was(false), progress, opWaiting, false},
		{"stop of what is not rerun", stop, operation{vm: rerun}, was(false), completed, opNothingToDo, false},
		{"stop of what goes", stop, operation{vm: deleted}, was(false), completed, opNothingToDo, false},
		{"restart", restart, operation{vm: always, vmi: running}, was(false), progress, opWaiting, true},
		{"restart, asked", restart, operation{vm: always, vmi: running}, was(true), progress, opWaiting, false},
		{"restart, ends", restart, operation{vm: always, vmi: ending}, was(true), progress, opWaiting, false},
		{"restart, between", restart, operation{vm: always}, was(true), progress, opWaiting, false},
		{"restart, begins", restart, operation{vm: always, vmi: vmi("b", kubevirtv1.Scheduled, false)}, was(true), progress, opWaiting, false},
		{"restart, runs anew", restart, operation{vm: always, vmi: other}, was(true), completed, opDone, false},
		{"restart, was asked and not written down", restart, operation{vm: always, vmi: other}, was(false), completed, opDone, false},
		{"restart of what does not run", restart, operation{vm: halted}, v1alpha1.VirtualMachineOperationStatus{}, failed, opNotRunning, false},
		{"restart of what crashed a moment ago", restart, operation{vm: always}, v1alpha1.VirtualMachineOperationStatus{}, progress, opWaiting, false},
		{"restart of what has ended", restart, operation{vm: manual, vmi: succeeded}, was(false), failed, opNotRunning, false},
		{"restart of what has ended and will not be rerun", restart, operation{vm: rerun, vmi: succeeded}, was(false), failed, opNotRunning, false},
		{"restart of what is being stopped", restart, operation{vm: halted, vmi: ending}, was(false), failed, opNotRunning, false},
		{"restart of what KubeVirt stops in a moment", restart, operation{vm: halted, vmi: running}, was(false), failed, opNotRunning, false},
		{"restart of what crashes", restart, operation{vm: always, vmi: failing}, was(false), progress, opWaiting, false},
		{"restart, by somebody else", restart, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStop, asksStart), vmi: ending}, was(false), progress, opWaiting, false},
		{"restart, between, started by hand", restart, operation{vm: vm(kubevirtv1.RunStrategyManual, asksStart)}, was(true), progress, opWaiting, false},
		{"restart, stopped by somebody", restart, operation{vm: halted}, was(true), failed, opNotRunning, false},
		{"restart, failed at once", restart, operation{vm: manual, vmi: vmi("b", kubevirtv1.Failed, false)}, was(true), failed, opNotRunning, false},
		{"evict", v1alpha1.OperationEvict, operation{vm: always, vmi: running}, was(false), progress, opWaiting, true},
		{"evict, while another migration is", v1alpha1.OperationEvict, operation{vm: always, vmi: running, busy: "x"}, was(false), failed, opBusy, false},
		{"evict of what does not run", v1alpha1.OperationEvict, operation{vm: always}, was(false), failed, opNotRunning, false},
		{"migrate to nowhere", v1alpha1.OperationMigrate, operation{vm: always, vmi: running}, was(false), failed, opNoNode, false},
		{"migrate", v1alpha1.OperationMigrate, operation{vm: always, vmi: running, node: true}, was(false), progress, opWaiting, true},
		{"migrate, under way", v1alpha1.OperationMigrate, operation{vm: always, vmi: running, vmim: vmim(kubevirtv1.MigrationRunning)}, was(true), progress, opWaiting, false},
		{"migrate, there", v1alpha1.OperationMigrate, operation{vm: always, vmi: running, vmim: vmim(kubevirtv1.MigrationSucceeded)}, was(true), completed, opDone, false},
		{"migrate, not there", v1alpha1.OperationMigrate, operation{vm: always, vmi: running, vmim: vmim(kubevirtv1.MigrationFailed)}, was(true), failed, opMigration, false},
		{"migrate, whose migration was deleted", v1alpha1.OperationMigrate, operation{vm: always, vmi: running, node: true}, was(true), failed, opCancelled, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.o.op = &v1alpha1.VirtualMachineOperation{Spec: v1alpha1.VirtualMachineOperationSpec{VirtualMachine: "vm", Type: c.kind}, Status: c.status}
			if c.kind == v1alpha1.OperationMigrate {
				c.o.op.Spec.TargetNode = "n2"
			}
			got := c.o.decide()
			if got.phase != c.phase || got.reason != c.reason || got.ask != c.ask || got.message == "" || (got.progress == 100) != (got.phase == completed) {
				t.Errorf("decided %+v, want %s (%s), ask %v", got, c.phase, c.reason, c.ask)
			}
		})
	}
}

// KubeVirt's subresources are asked as virtctl does, and what KubeVirt answers is told apart.
func TestAskKubeVirt(t *testing.T) {
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		asked = r.Method + " " + r.URL.Path + " " + string(body)
		if err != nil || r.URL.Path[len(r.URL.Path)-4:] == "stop" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","message":"VM is not running","code":409}`)
		}
	}))
	defer server.Close()
	web, err := rest.UnversionedRESTClientFor(subresourceConfig(&rest.Config{Host: server.URL}))
	if err != nil {
		t.Fatal(err)
	}
	ask, vm := asker(web), types.NamespacedName{Namespace: "ns", Name: "vm"}
	if err := ask(context.Background(), vm, "start"); err != nil || asked != "PUT /apis/subresources.kubevirt.io/v1/namespaces/ns/virtualmachines/vm/start {}" {
		t.Errorf("asked %q: %v", asked, err)
	}
	if err := ask(context.Background(), vm, "stop"); !apierrors.IsConflict(err) {
		t.Errorf("a request that KubeVirt refuses: %v, want a conflict", err)
	}
}

// operationsAPI has VM ns/vm and an operation on it.
func operationsAPI(t *testing.T, op *v1alpha1.VirtualMachineOperation, faults interceptor.Funcs) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	vm := &kubevirtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm"}}
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(vm).WithStatusSubresource(&v1alpha1.VirtualMachineOperation{}).WithInterceptorFuncs(faults).
		WithIndex(&kubevirtv1.VirtualMachineInstanceMigration{}, indexVMI, func(o client.Object) []string { return []string{vmOf(o).Name} }).
		WithIndex(&v1alpha1.VirtualMachineOperation{}, indexOperation, func(client.Object) []string { return []string{"vm"} })
	if op != nil {
		b = b.WithObjects(op)
	}
	return b.Build()
}

// A VM that has changed because KubeVirt was asked wakes its operation before the cache has that it was: it is not asked again, which it would refuse.
func TestKubeVirtIsAskedOnce(t *testing.T) {
	cached := &v1alpha1.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "op", UID: "op", Finalizers: []string{v1alpha1.OperationFinalizer}},
		Spec:       v1alpha1.VirtualMachineOperationSpec{VirtualMachine: "vm", Type: v1alpha1.OperationStart},
		Status:     v1alpha1.VirtualMachineOperationStatus{Phase: v1alpha1.OperationPending},
	}
	with := func(change func(*v1alpha1.VirtualMachineOperation)) *v1alpha1.VirtualMachineOperation {
		op := cached.DeepCopy()
		change(op)
		return op
	}
	for name, c := range map[string]struct {
		live  *v1alpha1.VirtualMachineOperation
		fault error
		asked int
	}{
		"it was not asked":          {cached, nil, 1},
		"it was asked":              {with(func(op *v1alpha1.VirtualMachineOperation) { op.Status.Requested = true }), nil, 0},
		"the operation is over":     {with(func(op *v1alpha1.VirtualMachineOperation) { op.Status.Phase = v1alpha1.OperationSuperseded }), nil, 0},
		"it is another of the name": {with(func(op *v1alpha1.VirtualMachineOperation) { op.UID = "other" }), nil, 0},
		"it is being deleted":       {with(func(op *v1alpha1.VirtualMachineOperation) { op.DeletionTimestamp = &metav1.Time{Time: time.Now()} }), nil, 0},
		"it is gone":                {nil, nil, 0},
		"the API does not answer":   {cached, errors.New("the API server is away"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			api := operationsAPI(t, cached.DeepCopy(), interceptor.Funcs{})
			r := &operationReconciler{
				api: api, virt: &kubevirt{}, now: time.Now, log: slog.New(slog.DiscardHandler),
				live: operationsAPI(t, c.live, interceptor.Funcs{Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
					return errors.Join(c.fault, w.Get(ctx, key, o, opts...))
				}}),
				ask: func(context.Context, types.NamespacedName, string) error {
					if asked++; c.asked == 0 {
						return apierrors.NewConflict(schema.GroupResource{Resource: "virtualmachines"}, "vm", errors.New("VM is already running"))
					}
					return nil
				},
			}
			key := client.ObjectKeyFromObject(cached)
			if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil != (c.fault != nil) {
				t.Errorf("reconciled: %v, want an error: %v", err, c.fault != nil)
			}
			got := &v1alpha1.VirtualMachineOperation{}
			if err := api.Get(t.Context(), key, got); err != nil {
				t.Fatal(err)
			}
			if asked != c.asked || got.Status.Requested != (c.asked > 0) || got.Status.Phase.Final() {
				t.Errorf("KubeVirt was asked %d times, want %d; the operation is %+v", asked, c.asked, got.Status)
			}
		})
	}
}

// What ends an operation is the VM as the API server has it, once no earlier operation may ask KubeVirt any more: not what the cache shows, which does not have yet what KubeVirt has agreed to.
func TestOperationJudgesByTheAPIServer(t *testing.T) {
	stop := &v1alpha1.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "op", UID: "op", CreationTimestamp: metav1.Unix(2, 0), Finalizers: []string{v1alpha1.OperationFinalizer}},
		Spec:       v1alpha1.VirtualMachineOperationSpec{VirtualMachine: "vm", Type: v1alpha1.OperationStop},
		Status:     v1alpha1.VirtualMachineOperationStatus{Phase: v1alpha1.OperationPending},
	}
	earlier := func(phase v1alpha1.OperationPhase) *v1alpha1.VirtualMachineOperation {
		op := stop.DeepCopy()
		op.Name, op.UID, op.CreationTimestamp, op.Spec.Type, op.Status.Phase = "earlier", "earlier", metav1.Unix(1, 0), v1alpha1.OperationStart, phase
		return op
	}
	const always, halted = kubevirtv1.RunStrategyAlways, kubevirtv1.RunStrategyHalted
	for name, c := range map[string]struct {
		live    kubevirtv1.VirtualMachineRunStrategy
		earlier *v1alpha1.VirtualMachineOperation
		phase   v1alpha1.OperationPhase
		asked   int
	}{
		"it does not run":                        {halted, nil, v1alpha1.OperationCompleted, 0},
		"a start was agreed to":                  {always, nil, v1alpha1.OperationInProgress, 1},
		"an earlier operation may ask for one":   {halted, earlier(v1alpha1.OperationInProgress), v1alpha1.OperationInProgress, 0},
		"an earlier operation has asked for one": {always, earlier(v1alpha1.OperationSuperseded), v1alpha1.OperationInProgress, 1},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			api := operationsAPI(t, stop.DeepCopy(), interceptor.Funcs{}) // whose VM has no run strategy: it is halted
			if c.earlier != nil {
				if err := api.Create(t.Context(), c.earlier); err != nil {
					t.Fatal(err)
				}
			}
			r := &operationReconciler{
				api: api, virt: &kubevirt{}, now: time.Now, log: slog.New(slog.DiscardHandler),
				live: operationsAPI(t, stop.DeepCopy(), interceptor.Funcs{Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
					err := w.Get(ctx, key, o, opts...)
					if vm, ok := o.(*kubevirtv1.VirtualMachine); ok {
						vm.Spec.RunStrategy = &c.live
					}
					return err
				}}),
				ask: func(context.Context, types.NamespacedName, string) error { asked++; return nil },
			}
			if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(stop)}); err != nil {
				t.Fatal(err)
			}
			got := &v1alpha1.VirtualMachineOperation{}
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(stop), got); err != nil {
				t.Fatal(err)
			}
			if asked != c.asked || got.Status.Phase != c.phase {
				t.Errorf("KubeVirt was asked %d times, want %d; the operation is %+v, want %s", asked, c.asked, got.Status, c.phase)
			}
		})
	}
}

// What KubeVirt has agreed to, and the operation does not know, since the answer was lost or could not be written down, it refuses when it is asked again. That is no failure.
func TestOperationWhoseAnswerIsLost(t *testing.T) {
	op := &v1alpha1.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "op", UID: "op", Finalizers: []string{v1alpha1.OperationFinalizer}},
		Spec:       v1alpha1.VirtualMachineOperationSpec{VirtualMachine: "vm", Type: v1alpha1.OperationStart},
		Status:     v1alpha1.VirtualMachineOperationStatus{Phase: v1alpha1.OperationPending},
	}
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "virtualmachines"}, "vm", errors.New("Always does not support manual start requests"))
	for name, c := range map[string]struct {
		answer error // of the first request
		writes int   // of the status that fail
		agreed bool
		phase  v1alpha1.OperationPhase
	}{
		"it cannot be written down":             {nil, 1, true, v1alpha1.OperationInProgress},
		"it does not come":                      {context.DeadlineExceeded, 0, true, v1alpha1.OperationInProgress},
		"it is that of a request that was late": {conflict, 0, true, v1alpha1.OperationInProgress},
		"KubeVirt does not agree":               {conflict, 0, false, v1alpha1.OperationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			strategy := kubevirtv1.RunStrategyHalted
			api := operationsAPI(t, op.DeepCopy(), interceptor.Funcs{
				SubResourcePatch: func(ctx context.Context, w client.Client, sub string, o client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
					if c.writes--; c.writes >= 0 {
						return errors.New("the API server is away")
					}
					return w.SubResource(sub).Patch(ctx, o, patch, opts...)
				},
				Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
					err := w.Get(ctx, key, o, opts...)
					if vm, ok := o.(*kubevirtv1.VirtualMachine); ok {
						vm.Spec.RunStrategy = &strategy
					}
					return err
				},
			})
			asked := 0
			r := &operationReconciler{
				api: api, live: api, virt: &kubevirt{}, now: time.Now, log: slog.New(slog.DiscardHandler),
				ask: func(context.Context, types.NamespacedName, string) error {
					if asked++; asked > 1 {
						return conflict
					}
					if c.agreed {
						strategy = kubevirtv1.RunStrategyAlways
					}
					return c.answer
				},
			}
			for range 3 {
				_, _ = r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(op)}) // what fails is tried again
			}
			got := &v1alpha1.VirtualMachineOperation{}
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(op), got); err != nil {
				t.Fatal(err)
			}
			if got.Status.Phase != c.phase || asked != 1 {
				t.Errorf("KubeVirt was asked %d times, want once; the operation is %+v, want %s", asked, got.Status, c.phase)
			}
		})
	}
}

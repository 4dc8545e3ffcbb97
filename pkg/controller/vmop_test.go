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
	for _, c := range []struct {
		what   string
		kind   v1alpha1.OperationType
		o      operation
		status v1alpha1.VirtualMachineOperationStatus
		phase  v1alpha1.OperationPhase
		reason string
		ask    bool
	}{
		{"no VM", v1alpha1.OperationStart, operation{}, was(false), failed, opNoVM, false},
		{"a later one", v1alpha1.OperationStart, operation{vm: true, later: "x"}, was(true), v1alpha1.OperationSuperseded, opLater, false},
		{"start", v1alpha1.OperationStart, operation{vm: true}, was(false), progress, opWaiting, true},
		{"start, asked", v1alpha1.OperationStart, operation{vm: true}, was(true), progress, opWaiting, false},
		{"start, on its way", v1alpha1.OperationStart, operation{vm: true, vmi: vmi("a", kubevirtv1.Scheduling, false)}, was(true), progress, opWaiting, false},
		{"start, after one that ended", v1alpha1.OperationStart, operation{vm: true, vmi: vmi("a", kubevirtv1.Succeeded, false)}, was(false), progress, opWaiting, true},
		{"start, runs", v1alpha1.OperationStart, operation{vm: true, vmi: running}, was(true), completed, opDone, false},
		{"start of what runs", v1alpha1.OperationStart, operation{vm: true, vmi: running}, was(false), completed, opNothingToDo, false},
		{"stop", v1alpha1.OperationStop, operation{vm: true, vmi: running}, was(false), progress, opWaiting, true},
		{"stop, ends", v1alpha1.OperationStop, operation{vm: true, vmi: vmi("a", kubevirtv1.Running, true)}, was(true), progress, opWaiting, false},
		{"stop, gone", v1alpha1.OperationStop, operation{vm: true}, was(true), completed, opDone, false},
		{"stop of what does not run", v1alpha1.OperationStop, operation{vm: true}, was(false), completed, opNothingToDo, false},
		{"restart", v1alpha1.OperationRestart, operation{vm: true, vmi: running}, was(false), progress, opWaiting, true},
		{"restart, asked", v1alpha1.OperationRestart, operation{vm: true, vmi: running}, was(true), progress, opWaiting, false},
		{"restart, ends", v1alpha1.OperationRestart, operation{vm: true, vmi: vmi("a", kubevirtv1.Running, true)}, was(true), progress, opWaiting, false},
		{"restart, between", v1alpha1.OperationRestart, operation{vm: true}, was(true), progress, opWaiting, false},
		{"restart, begins", v1alpha1.OperationRestart, operation{vm: true, vmi: vmi("b", kubevirtv1.Scheduled, false)}, was(true), progress, opWaiting, false},
		{"restart, runs anew", v1alpha1.OperationRestart, operation{vm: true, vmi: other}, was(true), completed, opDone, false},
		{"restart, was asked and not written down", v1alpha1.OperationRestart, operation{vm: true, vmi: other}, was(false), completed, opDone, false},
		{"restart of what does not run", v1alpha1.OperationRestart, operation{vm: true}, v1alpha1.VirtualMachineOperationStatus{}, failed, opNotRunning, false},
		{"evict", v1alpha1.OperationEvict, operation{vm: true, vmi: running}, was(false), progress, opWaiting, true},
		{"evict, while another migration is", v1alpha1.OperationEvict, operation{vm: true, vmi: running, busy: "x"}, was(false), failed, opBusy, false},
		{"evict of what does not run", v1alpha1.OperationEvict, operation{vm: true}, was(false), failed, opNotRunning, false},
		{"migrate to nowhere", v1alpha1.OperationMigrate, operation{vm: true, vmi: running}, was(false), failed, opNoNode, false},
		{"migrate", v1alpha1.OperationMigrate, operation{vm: true, vmi: running, node: true}, was(false), progress, opWaiting, true},
		{"migrate, under way", v1alpha1.OperationMigrate, operation{vm: true, vmi: running, vmim: vmim(kubevirtv1.MigrationRunning)}, was(true), progress, opWaiting, false},
		{"migrate, there", v1alpha1.OperationMigrate, operation{vm: true, vmi: running, vmim: vmim(kubevirtv1.MigrationSucceeded)}, was(true), completed, opDone, false},
		{"migrate, not there", v1alpha1.OperationMigrate, operation{vm: true, vmi: running, vmim: vmim(kubevirtv1.MigrationFailed)}, was(true), failed, opMigration, false},
		{"migrate, whose migration was deleted", v1alpha1.OperationMigrate, operation{vm: true, vmi: running, node: true}, was(true), failed, opCancelled, false},
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

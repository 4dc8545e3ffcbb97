package integration

import (
	"fmt"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func newOperation(name, vm string, kind v1alpha1.OperationType, target string) *v1alpha1.VirtualMachineOperation {
	return &v1alpha1.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "life", Name: name},
		Spec:       v1alpha1.VirtualMachineOperationSpec{VirtualMachine: vm, Type: kind, TargetNode: target},
	}
}

// comesTo waits until an operation is in a phase for a reason.
func (e *env) comesTo(t *testing.T, op *v1alpha1.VirtualMachineOperation, phase v1alpha1.OperationPhase, reason string) {
	t.Helper()
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(op), op); err != nil {
			return err
		}
		if op.Status.Phase != phase || op.Status.Reason != reason {
			return fmt.Errorf("operation %s is %+v, want %s (%s)", op.Name, op.Status, phase, reason)
		}
		return nil
	})
}

// carriedBy waits for the migration of an operation.
func (e *env) carriedBy(t *testing.T, op *v1alpha1.VirtualMachineOperation) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	var list kubevirtv1.VirtualMachineInstanceMigrationList
	var found *kubevirtv1.VirtualMachineInstanceMigration
	eventually(t, func() error {
		if err := e.api.List(t.Context(), &list, client.InNamespace(op.Namespace)); err != nil {
			return err
		}
		for i := range list.Items {
			if metav1.IsControlledBy(&list.Items[i], op) {
				found = &list.Items[i]
				return nil
			}
		}
		return fmt.Errorf("operation %s has no migration", op.Name)
	})
	return found
}

// An operation moves a VM by KubeVirt's own object, says how far that is, and aborts it when it is deleted. A later one that stops the VM takes its place.
func TestLifecycleOperations(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "life", nil)
	always := func(vm *kubevirtv1.VirtualMachine) {
		strategy := kubevirtv1.RunStrategyAlways
		vm.Spec.RunStrategy = &strategy
	}
	vm := e.declare(t, "web", always)
	vmi := e.begins(t, vm, "web-1", "n1")
	before := vmi.DeepCopy()
	vmi.Status.Phase, vmi.Status.NodeName = kubevirtv1.Running, "n1"
	if err := e.api.Patch(t.Context(), vmi, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}

	move := newOperation("move", "web", v1alpha1.OperationMigrate, "n2")
	e.create(t, move)
	vmim := e.carriedBy(t, move)
	if vmim.Spec.VMIName != "web" || len(vmim.Spec.AddedNodeSelector) != 1 {
		t.Errorf("the migration is %+v, want one of VM web to one node", vmim.Spec)
	}
	e.comesTo(t, move, v1alpha1.OperationInProgress, "Waiting")
	second := newOperation("second", "web", v1alpha1.OperationEvict, "")
	e.create(t, second)
	e.comesTo(t, second, v1alpha1.OperationFailed, "MigrationRunning")
	e.migrationPhase(t, vmim, kubevirtv1.MigrationRunning)
	eventually(t, func() error {
		err := e.api.Get(t.Context(), client.ObjectKeyFromObject(move), move)
		if err == nil && (move.Status.Progress != 60 || move.Status.Started == nil) {
			err = fmt.Errorf("the migration runs, the operation is %+v", move.Status)
		}
		return err
	})
	e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
	e.comesTo(t, move, v1alpha1.OperationCompleted, "Done")
	if move.Status.Progress != 100 || move.Status.Completed == nil {
		t.Errorf("the operation is over, and is %+v", move.Status)
	}
	was := move.DeepCopy()
	move.Spec.TargetNode = "n1"
	if err := e.api.Patch(t.Context(), move, client.MergeFrom(was)); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("another target for an operation: %v, want it refused", err)
	}

	t.Run("deleted while it runs", func(t *testing.T) {
		cancelled := newOperation("cancelled", "web", v1alpha1.OperationEvict, "")
		e.create(t, cancelled)
		vmim := e.carriedBy(t, cancelled)
		e.comesTo(t, cancelled, v1alpha1.OperationInProgress, "Waiting")
		if err := e.api.Delete(t.Context(), cancelled); err != nil {
			t.Fatal(err)
		}
		for _, o := range []client.Object{vmim, cancelled} {
			eventually(t, func() error {
				if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
					return fmt.Errorf("%T %s is still there (%w)", o, o.GetName(), err)
				}
				return nil
			})
		}
	})
	t.Run("a later one", func(t *testing.T) {
		earlier := newOperation("a-earlier", "web", v1alpha1.OperationEvict, "")
		e.create(t, earlier)
		e.carriedBy(t, earlier)
		e.comesTo(t, earlier, v1alpha1.OperationInProgress, "Waiting")
		later := newOperation("b-later", "web", v1alpha1.OperationStart, "")
		e.create(t, later)
		e.comesTo(t, earlier, v1alpha1.OperationSuperseded, "LaterOperation")
		e.comesTo(t, later, v1alpha1.OperationCompleted, "NothingToDo")
	})
	e.declare(t, "crashes", always)
	e.declare(t, "halted")
	for name, c := range map[string]struct {
		op     *v1alpha1.VirtualMachineOperation
		phase  v1alpha1.OperationPhase
		reason string
	}{
		"no such VM":                    {newOperation("nobody", "nobody", v1alpha1.OperationStart, ""), v1alpha1.OperationFailed, "VMNotFound"},
		"KubeVirt has no such word":     {newOperation("refused", "web", v1alpha1.OperationStop, ""), v1alpha1.OperationFailed, "Refused"}, // nobody serves its subresources here
		"stop before the next instance": {newOperation("between", "crashes", v1alpha1.OperationStop, ""), v1alpha1.OperationFailed, "Refused"},
		"stop of what is halted":        {newOperation("nothing", "halted", v1alpha1.OperationStop, ""), v1alpha1.OperationCompleted, "NothingToDo"},
	} {
		t.Run(name, func(t *testing.T) {
			e.create(t, c.op)
			e.comesTo(t, c.op, c.phase, c.reason)
		})
	}
	t.Run("tenants", e.operationsOfTenants)
}

// operationsOfTenants: whoever may make operations, and nothing of a VM, makes none: the controller lends its rights to nobody.
func (e *env) operationsOfTenants(t *testing.T) {
	cfg := rest.CopyConfig(e.rest)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "tenant", Groups: []string{"system:authenticated"}}
	tenant, err := client.New(cfg, client.Options{Scheme: e.api.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	may := func(name string, rules ...rbacv1.PolicyRule) {
		e.create(t, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "life", Name: name}, Rules: rules}, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: "life", Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "tenant"}},
		})
	}
	tries := func(op *v1alpha1.VirtualMachineOperation, denied string) {
		t.Helper()
		eventually(t, func() error { // what was granted is seen a moment later
			op.ResourceVersion, op.UID = "", types.UID("")
			err := tenant.Create(t.Context(), op)
			if (err == nil) != (denied == "") || err != nil && !strings.Contains(err.Error(), denied) {
				return fmt.Errorf("the tenant makes operation %s: %w, want %q", op.Spec.Type, err, denied)
			}
			return nil
		})
	}
	tries(newOperation("t1", "web", v1alpha1.OperationStart, ""), "cannot create resource")
	may("operations", rbacv1.PolicyRule{APIGroups: []string{"godwit.dev"}, Resources: []string{"virtualmachineoperations"}, Verbs: []string{"create"}})
	tries(newOperation("t2", "web", v1alpha1.OperationStart, ""), "needs the right to update that subresource")
	tries(newOperation("t3", "web", v1alpha1.OperationMigrate, "n2"), "needs the right to create virtualmachineinstancemigrations")
	may("starts", rbacv1.PolicyRule{APIGroups: []string{"subresources.kubevirt.io"}, Resources: []string{"virtualmachines/start"}, ResourceNames: []string{"web"}, Verbs: []string{"update"}})
	tries(newOperation("t4", "web", v1alpha1.OperationStart, ""), "")
	tries(newOperation("t5", "web", v1alpha1.OperationStop, ""), "needs the right to update that subresource")
	tries(newOperation("t6", "other", v1alpha1.OperationStart, ""), "needs the right to update that subresource")
	may("moves", rbacv1.PolicyRule{APIGroups: []string{"kubevirt.io"}, Resources: []string{"virtualmachineinstancemigrations"}, Verbs: []string{"create"}})
	tries(newOperation("t7", "web", v1alpha1.OperationEvict, ""), "")
}

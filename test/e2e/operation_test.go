package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
)

// An operation moves a VM to the node that it names, and says so; the VM is what it was. Start, Stop and Restart are not here: the lab's KubeVirt serves no subresources.
func TestLifecycleOperation(t *testing.T) {
	m := bootVM(t, lab.VMOptions{Name: "operated"})
	target := m.another(t, m.node(t))
	op := &v1alpha1.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: "to-" + target},
		Spec:       v1alpha1.VirtualMachineOperationSpec{VirtualMachine: m.Name, Type: v1alpha1.OperationMigrate, TargetNode: target},
	}
	if err := cluster.api.Create(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(cluster.api.Delete(context.WithoutCancel(t.Context()), op)); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		err := cluster.api.Get(ctx, client.ObjectKeyFromObject(op), op)
		if err == nil && !op.Status.Phase.Final() {
			err = fmt.Errorf("the operation is %+v", op.Status)
		}
		return err
	})
	if op.Status.Phase != v1alpha1.OperationCompleted || op.Status.Progress != 100 {
		t.Fatalf("the operation is %+v, want it completed", op.Status)
	}
	if node := m.node(t); node != target {
		t.Errorf("the VM is on %s, want %s", node, target)
	}
	m.untouched(t)
}

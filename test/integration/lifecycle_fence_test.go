package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// A VM whose node is gone has its port where its next launcher is, at once; one whose node merely does not report has not. What the southbound database has of a deleted node goes.
func TestLifecycleNodeGone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2", "n3", "n4"} {
		e.node(t, n)
		e.central.Chassis(t, n)
		e.central.Southbound(t, "create", "Chassis_Private", "name="+n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "cold", nil)
	t.Run("out of service", e.outOfService)
	t.Run("deleted", e.nodeDeleted)
	t.Run("source of a migration", e.sourceNodeGone)
	t.Run("target of a migration", e.targetNodeGone)
	t.Run("deleted while the controller is away", func(t *testing.T) {
		e.stop()
		if err := e.api.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}); err != nil {
			t.Fatal(err)
		}
		e.start(t)
		e.noChassis(t, "n2")
		eventually(t, func() error {
			port, err := e.nb.Port(t.Context(), ident.NodePort("n2"))
			if err == nil && (port == nil || len(port.Addresses) > 0 || port.Options[ident.OptionRequestedChassis] != string(ident.NoChassis)) {
				err = fmt.Errorf("the port of node n2, which is gone, is %+v, want one without an address that nobody may claim", port)
			}
			return err
		})
		e.stop() // and the chassis comes back
		e.central.Chassis(t, "n2")
		e.start(t)
		e.noChassis(t, "n2")
	})
	for _, table := range []string{"Chassis", "Chassis_Private"} {
		if left := strings.Fields(e.central.Southbound(t, "--bare", "--columns=name", "list", table)); !slices.Contains(left, "n1") || !slices.Contains(left, "n4") {
			t.Errorf("of %s are left %v, want those of n1 and n4, which exist", table, left)
		}
	}
}

// taint puts a node out of service, or back.
func (e *env) taint(t *testing.T, node string, taints ...corev1.Taint) {
	t.Helper()
	n := &corev1.Node{}
	if err := e.api.Get(t.Context(), client.ObjectKey{Name: node}, n); err != nil {
		t.Fatal(err)
	}
	before := n.DeepCopy()
	n.Spec.Taints = taints
	if err := e.api.Patch(t.Context(), n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

var outOfService = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}

// notReady lets a node's kubelet have gone silent.
func (e *env) notReady(t *testing.T, node string) {
	t.Helper()
	n := &corev1.Node{}
	if err := e.api.Get(t.Context(), client.ObjectKey{Name: node}, n); err != nil {
		t.Fatal(err)
	}
	before := n.DeepCopy()
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	if err := e.api.Status().Patch(t.Context(), n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	e.taint(t, node, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule})
}

// keeps fails the test if the row of a VM asks for another chassis within a second.
func (e *env) keeps(t *testing.T, vm types.NamespacedName, chassis string) {
	t.Helper()
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if row, err := e.row(t, vm); err != nil || row.Options["requested-chassis"] != chassis {
			t.Fatalf("the row of VM %s is %+v (%v), want it to ask for %s still", vm, row, err, chassis)
		}
	}
}

func (e *env) outOfService(t *testing.T) {
	vm := key("cold", "tainted")
	vmi := e.vmi(t, vm)
	old := e.launcher(t, vmi, "tainted-1", "n1", nil)
	row := e.asks(t, vm, "n1", "")
	e.mayAttach(t, old, v1alpha1.Attach{Chassis: "n1"})
	has := e.vmPort(t, vm, v1alpha1.PortBound).Status

	e.notReady(t, "n1")
	next := e.launcher(t, vmi, "tainted-2", "n4", nil)
	e.told(t, vmi, "NetworkUnclear")
	e.keeps(t, vm, "n1")

	e.taint(t, "n1", outOfService)
	fenced := time.Now()
	if moved := e.asks(t, vm, "n4", ""); moved.UUID != row.UUID || !slices.Equal(moved.Addresses, row.Addresses) {
		t.Errorf("row %s with %v has become %s with %v", row.UUID, row.Addresses, moved.UUID, moved.Addresses)
	}
	id := e.mayAttach(t, next, v1alpha1.Attach{Chassis: "n4"})
	t.Logf("the next launcher may attach %s after the taint", time.Since(fenced).Round(time.Millisecond))
	if now := e.vmPort(t, vm, v1alpha1.PortBound).Status; !slices.Equal(now.IPs, has.IPs) || now.MAC != has.MAC || id.MAC.String() != has.MAC {
		t.Errorf("the VM had %v and %s, has %v and %s, its launcher %s", has.IPs, has.MAC, now.IPs, now.MAC, id.MAC)
	}

	e.taint(t, "n1") // it comes back, with a pod that is listed
	e.keeps(t, vm, "n4")
}

func (e *env) nodeDeleted(t *testing.T) {
	vm := key("cold", "deleted")
	vmi := e.vmi(t, vm)
	e.launcher(t, vmi, "deleted-1", "n3", nil)
	row := e.asks(t, vm, "n3", "")
	if err := e.api.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}}); err != nil {
		t.Fatal(err)
	}
	e.noChassis(t, "n3")
	e.keeps(t, vm, "n3") // nobody has taken its place
	next := e.launcher(t, vmi, "deleted-2", "n4", nil)
	if moved := e.asks(t, vm, "n4", ""); moved.UUID != row.UUID {
		t.Errorf("row %s has become %s", row.UUID, moved.UUID)
	}
	e.mayAttach(t, next, v1alpha1.Attach{Chassis: "n4"})
}

// begun is a VM on n1 that is on its way to n2.
func (e *env) begun(t *testing.T, name string) (*kubevirtv1.VirtualMachineInstance, *kubevirtv1.VirtualMachineInstanceMigration) {
	t.Helper()
	vm := key("cold", name)
	vmi := e.vmi(t, vm)
	source := e.launcher(t, vmi, name+"-1", "n1", nil)
	e.asks(t, vm, "n1", "")
	vmim := e.migration(t, vmi)
	time.Sleep(time.Until(source.CreationTimestamp.Add(time.Second)))
	e.launcher(t, vmi, name+"-2", "n2", vmim)
	e.asks(t, vm, "n1,n2", "rarp")
	return vmi, vmim
}

// sourceNodeGone: the target is all that is left. The migration is on record as KubeVirt calls it.
func (e *env) sourceNodeGone(t *testing.T) {
	vmi, vmim := e.begun(t, "source")
	vm := client.ObjectKeyFromObject(vmi)
	e.taint(t, "n1", outOfService)
	defer e.taint(t, "n1")
	e.asks(t, vm, "n2", "")
	e.migrationPhase(t, vmim, kubevirtv1.MigrationFailed)
	e.asks(t, vm, "n2", "")
	e.recorded(t, vm, vmim, v1alpha1.MigrationFailed)
}

func (e *env) targetNodeGone(t *testing.T) {
	vmi, vmim := e.begun(t, "target")
	vm := client.ObjectKeyFromObject(vmi)
	e.taint(t, "n2", outOfService)
	defer e.taint(t, "n2")
	e.asks(t, vm, "n1", "")
	e.migrationPhase(t, vmim, kubevirtv1.MigrationFailed)
	e.recorded(t, vm, vmim, v1alpha1.MigrationFailed)
	e.asks(t, vm, "n1", "")
}

// recorded waits for the result of one of a VM's migrations.
func (e *env) recorded(t *testing.T, vm types.NamespacedName, vmim *kubevirtv1.VirtualMachineInstanceMigration, want v1alpha1.MigrationResult) {
	t.Helper()
	eventually(t, func() error {
		var list v1alpha1.PortMigrationList
		if err := e.api.List(t.Context(), &list, client.InNamespace(vm.Namespace)); err != nil {
			return err
		}
		for _, pm := range list.Items {
			if pm.Spec.Migration.UID == vmim.UID {
				if pm.Status.Result != want {
					return fmt.Errorf("PortMigration %s: %+v, want result %s", pm.Name, pm.Status, want)
				}
				return nil
			}
		}
		return fmt.Errorf("there is no PortMigration of %s", vmim.Name)
	})
}

// noChassis waits until the southbound database has nothing of a node.
func (e *env) noChassis(t *testing.T, node string) {
	t.Helper()
	eventually(t, func() error {
		for _, table := range []string{"Chassis", "Chassis_Private"} {
			if slices.Contains(strings.Fields(e.central.Southbound(t, "--bare", "--columns=name", "list", table)), node) {
				return fmt.Errorf("node %s is gone, its %s is not", node, table)
			}
		}
		return nil
	})
}

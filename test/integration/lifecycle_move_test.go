package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// A Port that no VM uses can be given to a VM of another name, with its addresses and its MAC, which are never in two rows.
func TestLifecyclePortMove(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	t.Run("to a clone", e.movedToClone)
	t.Run("to one that has a Port", e.movedToTaken)
	t.Run("while the controller is away", e.movedMeanwhile)
	t.Run("and deleted", e.movedAndDeleted)
	t.Run("deleted by force", e.deletedByForce)
}

// ofVM makes a VMI one of a VM of its name.
func ofVM(uid types.UID) func(*kubevirtv1.VirtualMachineInstance) {
	controller := true
	return func(v *kubevirtv1.VirtualMachineInstance) {
		v.OwnerReferences = []metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: v.Name, UID: uid, Controller: &controller}}
	}
}

// retarget gives a Port to another VM.
func (e *env) retarget(t *testing.T, port types.NamespacedName, vm string) error {
	t.Helper()
	var p v1alpha1.Port
	if err := e.api.Get(t.Context(), port, &p); err != nil {
		t.Fatal(err)
	}
	before := p.DeepCopy()
	p.Spec.Target.Name = vm
	return e.api.Patch(t.Context(), &p, client.MergeFrom(before))
}

// rowsWith are the names of the rows that have an address.
func (e *env) rowsWith(t *testing.T, ip string) []string {
	t.Helper()
	rows, err := e.nb.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range rows {
		if slices.ContainsFunc(row.Addresses, func(a string) bool { return slices.Contains(strings.Fields(a), ip) }) {
			names = append(names, row.Name)
		}
	}
	return names
}

// isAt waits until a Port's addresses are in the row of a VM and in no other.
func (e *env) isAt(t *testing.T, port *v1alpha1.Port, vm string) {
	t.Helper()
	eventually(t, func() error {
		want := string(ident.VMPort(port.Namespace, vm, ident.DefaultNetwork))
		for _, ip := range port.Status.IPs {
			if got := e.rowsWith(t, ip); !slices.Equal(got, []string{want}) {
				return fmt.Errorf("address %s is in rows %v, want %s alone", ip, got, want)
			}
		}
		row, err := e.row(t, key(port.Namespace, vm))
		if err == nil && !strings.HasPrefix(row.Addresses[0], port.Status.MAC+" ") {
			err = fmt.Errorf("row %s has %v, want MAC %s", row.Name, row.Addresses, port.Status.MAC)
		}
		return err
	})
}

func (e *env) movedToClone(t *testing.T) {
	old, clone := key("move", "old"), key("move", "clone")
	vmi := e.vmi(t, old, ofVM("11111111-0000-0000-0000-000000000001"), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec.Domain.Devices.Interfaces[0].MacAddress = "02:00:00:00:99:01"
		v.Annotations = map[string]string{v1alpha1.ReclaimAnnotation: "Delete"}
	})
	launcher := e.launcher(t, vmi, "old-1", "n1", nil)
	e.mayAttach(t, launcher, v1alpha1.Attach{Chassis: "n1"})
	port := e.vmPort(t, old, v1alpha1.PortBound)
	if err := e.retarget(t, old, "clone"); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "while a VM uses the Port") {
		t.Errorf("the target of a Port in use is changed: %v, want it to be refused", err)
	}
	e.isAt(t, port, "old")

	e.deletePod(t, key("move", "old-1"))
	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, old, v1alpha1.PortReserved)
	if err := e.retarget(t, old, "clone"); err != nil {
		t.Fatal(err)
	}
	e.isAt(t, port, "clone")
	if lsp, err := e.nb.Port(t.Context(), ident.VMPort("move", "old", ident.DefaultNetwork)); err != nil || lsp != nil {
		t.Errorf("the row of the old name is %+v (%v), want none", lsp, err)
	}
	const cloneUID = types.UID("11111111-0000-0000-0000-000000000002")
	next := e.vmi(t, clone, ofVM(cloneUID))
	id := e.mayAttach(t, e.launcher(t, next, "clone-1", "n1", nil), v1alpha1.Attach{Chassis: "n1"})
	if id.IPs[0].Addr().String() != port.Status.IPs[0] || id.MAC.String() != port.Status.MAC {
		t.Errorf("the clone has %+v, want %v and %s", id, port.Status.IPs, port.Status.MAC)
	}
	eventually(t, func() error {
		var p v1alpha1.Port
		if err := e.api.Get(t.Context(), old, &p); err != nil {
			return err
		}
		if len(p.OwnerReferences) != 1 || p.OwnerReferences[0].UID != cloneUID {
			return fmt.Errorf("the Port is owned by %+v, want the clone alone, with which it goes", p.OwnerReferences)
		}
		return nil
	})

	// The old VM starts again: with addresses of its own.
	again := e.vmi(t, old, ofVM("11111111-0000-0000-0000-000000000001"))
	own := e.mayAttach(t, e.launcher(t, again, "old-2", "n1", nil), v1alpha1.Attach{Chassis: "n1"})
	e.told(t, again, "PortIsAnothers")
	if slices.Contains(port.Status.IPs, own.IPs[0].Addr().String()) || own.MAC.String() == port.Status.MAC {
		t.Errorf("the old VM has %+v, which is the clone's", own)
	}
	e.isAt(t, port, "clone")
	// One that asks for an address that it has no more waits for it.
	wants := e.vmi(t, key("move", "wants"), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Annotations = map[string]string{v1alpha1.IPsAnnotation: port.Status.IPs[0]}
	})
	e.told(t, wants, "AddressTaken")
}

// unready waits until a Port is not ready for a reason.
func (e *env) unready(t *testing.T, port types.NamespacedName, reason string) {
	t.Helper()
	eventually(t, func() error {
		var p v1alpha1.Port
		if err := e.api.Get(t.Context(), port, &p); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Reason != reason {
			return fmt.Errorf("Port %s is %+v, want %s", port, c, reason)
		}
		return nil
	})
}

// movedToTaken: a VM that has a Port keeps it, however much older the one is that is moved to it.
func (e *env) movedToTaken(t *testing.T) {
	e.create(t, newPort("move", "spare", "nobody", v1alpha1.PortSpec{IPs: []string{"10.244.99.9"}}))
	spare := e.vmPort(t, key("move", "spare"), v1alpha1.PortReserved)
	vmi := e.vmi(t, key("move", "busy"))
	e.mayAttach(t, e.launcher(t, vmi, "busy-1", "n1", nil), v1alpha1.Attach{Chassis: "n1"})
	has := e.vmPort(t, key("move", "busy"), v1alpha1.PortBound)
	before, err := e.row(t, key("move", "busy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.retarget(t, key("move", "spare"), "busy"); err != nil {
		t.Fatal(err)
	}
	e.unready(t, key("move", "spare"), "TargetTaken")
	eventually(t, func() error {
		if got := e.rowsWith(t, spare.Status.IPs[0]); len(got) != 0 {
			return fmt.Errorf("address %s is in rows %v, want none", spare.Status.IPs[0], got)
		}
		return nil
	})
	e.keeps(t, key("move", "busy"), "n1")
	e.isAt(t, has, "busy")
	if now, err := e.row(t, key("move", "busy")); err != nil || now.UUID != before.UUID {
		t.Errorf("the row of the VM was %s, is %+v (%v)", before.UUID, now, err)
	}
	e.stop() // who is first is the same to a controller that begins
	e.start(t)
	e.keeps(t, key("move", "busy"), "n1")
	e.isAt(t, has, "busy")
	if err := e.retarget(t, key("move", "spare"), "another"); err != nil {
		t.Fatal(err)
	}
	e.isAt(t, spare, "another")

	// One of two is deleted, as the other says: not the VM's, and while the VM runs.
	if err := e.retarget(t, key("move", "spare"), "busy"); err != nil {
		t.Fatal(err)
	}
	e.unready(t, key("move", "spare"), "TargetTaken")
	if err := e.api.Delete(t.Context(), spare); err != nil {
		t.Fatal(err)
	}
	e.released(t, spare)
	e.keeps(t, key("move", "busy"), "n1")
	e.isAt(t, has, "busy")
}

func (e *env) movedMeanwhile(t *testing.T) {
	e.start(t) // the one before has ended with its test
	e.create(t, newPort("move", "late", "before", v1alpha1.PortSpec{}))
	port := e.vmPort(t, key("move", "late"), v1alpha1.PortReserved)
	e.isAt(t, port, "before")
	e.stop()
	if err := e.retarget(t, key("move", "late"), "after"); err != nil {
		t.Fatal(err)
	}
	vmi := e.vmi(t, key("move", "after"), ofVM(uuid.NewUUID()))
	launcher := e.launcher(t, vmi, "after-1", "n1", nil)
	e.start(t)
	e.mayAttach(t, launcher, v1alpha1.Attach{Chassis: "n1"})
	e.isAt(t, port, "after")
}

// movedAndDeleted: a Port that is moved and deleted before the move is seen leaves its old row before its addresses are anybody else's.
func (e *env) movedAndDeleted(t *testing.T) {
	e.start(t) // the one before has ended with its test
	e.create(t, newPort("move", "brief", "early", v1alpha1.PortSpec{}))
	port := e.vmPort(t, key("move", "brief"), v1alpha1.PortReserved)
	e.isAt(t, port, "early")
	if err := e.retarget(t, key("move", "brief"), "never"); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	e.isNowhereElse(t, port)
}

// deletedByForce: nor are those of a Port whose finalizer somebody takes away.
func (e *env) deletedByForce(t *testing.T) {
	e.start(t)
	e.create(t, newPort("move", "forced", "forced", v1alpha1.PortSpec{}))
	port := e.vmPort(t, key("move", "forced"), v1alpha1.PortReserved)
	e.isAt(t, port, "forced")
	before := port.DeepCopy()
	port.Finalizers = nil
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	e.isNowhereElse(t, port)
}

// isNowhereElse waits until a Port is gone and somebody else has its addresses, and fails if a row of another name has them too.
func (e *env) isNowhereElse(t *testing.T, port *v1alpha1.Port) {
	t.Helper()
	next := newPort(port.Namespace, port.Name+"-next", port.Name+"-next", v1alpha1.PortSpec{IPs: port.Status.IPs})
	e.create(t, next)
	e.vmPort(t, client.ObjectKeyFromObject(next), v1alpha1.PortReserved)
	want := string(ident.VMPort(next.Namespace, next.Spec.Target.Name, ident.DefaultNetwork))
	for _, ip := range port.Status.IPs {
		if got := e.rowsWith(t, ip); !slices.Equal(got, []string{want}) {
			t.Errorf("address %s is in rows %v, want %s alone", ip, got, want)
		}
	}
}

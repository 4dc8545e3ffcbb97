package integration

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// batch is how many VMs come and go at once.
const batch = 20

// VMs come, run, and go, a batch at a time, with the controller being started again in the middle of some and away from beginning to end of others: nothing is left of them. CYCLES says how many.
func TestLifecycleCycles(t *testing.T) {
	t.Parallel()
	cycles := 60
	if text := os.Getenv("CYCLES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < batch {
			t.Fatalf("CYCLES=%s: want a number, at least %d", text, batch)
		}
		cycles = n
	}
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "life", nil)
	begin := time.Now()
	for first := 0; first < cycles; first += batch {
		e.cycle(t, first, (first/batch)%3)
	}
	e.nothingLeft(t)
	t.Logf("%d VMs have come and gone in %s, and nothing is left of them", cycles, time.Since(begin).Round(time.Second))
	t.Run("namespace deleted", e.namespaceDeleted)
}

// cycle lets a batch of VMs come and go. In way 1 another controller takes over while they run, in way 2 none is there while they go.
func (e *env) cycle(t *testing.T, first, way int) {
	t.Helper()
	var vms []*kubevirtv1.VirtualMachine
	var vmis []*kubevirtv1.VirtualMachineInstance
	for i := range batch {
		vms = append(vms, e.declare(t, fmt.Sprintf("vm-%d", first+i)))
	}
	for i, vm := range vms {
		vmi := e.vmi(t, client.ObjectKeyFromObject(vm), ofVM(vm.UID))
		e.launcher(t, vmi, vm.Name+"-launcher", fmt.Sprintf("n%d", 1+i%2), nil)
		vmis = append(vmis, vmi)
	}
	if way == 1 {
		e.stop()
		e.start(t)
	}
	var ports []*v1alpha1.Port
	for i, vm := range vms {
		e.asks(t, client.ObjectKeyFromObject(vm), fmt.Sprintf("n%d", 1+i%2), "")
		port := &v1alpha1.Port{}
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(vm), port); err != nil {
			t.Fatal(err)
		}
		if len(port.OwnerReferences) != 1 || port.OwnerReferences[0].UID != vm.UID {
			t.Fatalf("Port %s is owned by %+v, want its VM", port.Name, port.OwnerReferences)
		}
		ports = append(ports, port)
	}
	if way == 2 {
		e.stop()
	}
	for i, vm := range vms {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "life", Name: vm.Name + "-launcher"}}
		for _, o := range []client.Object{vm, ports[i], pod, vmis[i]} { // the Port by its owner: this API server has no garbage collector
			if err := e.api.Delete(t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if way == 2 {
		e.start(t)
	}
}

// nothingLeft waits until no Port, no row of a VM and no address of one is left.
func (e *env) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		var ports v1alpha1.PortList
		if err := e.api.List(t.Context(), &ports); err != nil {
			return err
		}
		rows, err := e.nb.Ports(t.Context())
		if err != nil {
			return err
		}
		var left []string
		for _, row := range rows {
			if row.ExternalIDs[ident.OwnerKey] == ident.OwnerVM {
				left = append(left, row.Name)
			}
		}
		if len(ports.Items)+len(left) > 0 {
			return fmt.Errorf("%d Ports and the rows %v are left", len(ports.Items), left)
		}
		return nil
	})
	// Whoever asks for the first addresses of the Subnet has them.
	probe := newPort("life", "probe", "probe", v1alpha1.PortSpec{})
	e.create(t, probe)
	port := e.vmPort(t, key("life", "probe"), v1alpha1.PortReserved)
	var s v1alpha1.Subnet
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKey{Name: controller.DefaultSubnet}, &s); err != nil {
			return err
		}
		if s.Status.UsedIPs != 1 {
			return fmt.Errorf("of Subnet %s %d addresses are used, want that of the probe alone", s.Name, s.Status.UsedIPs)
		}
		return nil
	})
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
}

// namespaceDeleted: a namespace is deleted under a VM that runs. Its objects go in any order; a Port that is in use goes last, and none is made anew.
func (e *env) namespaceDeleted(t *testing.T) {
	e.namespace(t, "doomed", nil)
	vm := key("doomed", "vm")
	vmi := e.vmi(t, vm)
	e.mayAttach(t, e.launcher(t, vmi, "launcher", "n1", nil), v1alpha1.Attach{Chassis: "n1"})
	port := e.vmPort(t, vm, v1alpha1.PortBound)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "doomed", Name: "launcher"}}
	if err := e.api.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "doomed"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	e.keeps(t, vm, "n1")
	for _, o := range []client.Object{pod, vmi} {
		if err := e.api.Delete(t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		err := e.api.Get(t.Context(), vm, &v1alpha1.Port{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the Port is still there (%w)", err)
		}
		names := e.rowsWith(t, port.Status.IPs[0])
		if len(names) > 0 {
			return errors.New("rows are left: " + fmt.Sprint(slices.Compact(names)))
		}
		return nil
	})
}

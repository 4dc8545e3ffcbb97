package integration

import (
	"fmt"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// A VM has its Port from when it is declared until it is deleted, whatever its run strategy does with it, and instances without a VM have theirs as long as they live.
func TestLifecycleStrategies(t *testing.T) {
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
	for strategy, ends := range map[kubevirtv1.VirtualMachineRunStrategy]kubevirtv1.VirtualMachineInstancePhase{
		kubevirtv1.RunStrategyHalted: kubevirtv1.Succeeded, kubevirtv1.RunStrategyManual: kubevirtv1.Succeeded,
		kubevirtv1.RunStrategyAlways: kubevirtv1.Succeeded, kubevirtv1.RunStrategyRerunOnFailure: kubevirtv1.Failed,
	} {
		for _, policy := range []string{"", "Retain"} {
			t.Run(fmt.Sprintf("%s, reclaimPolicy %q", strategy, policy), func(t *testing.T) { e.livesThrough(t, strategy, ends, policy) })
		}
	}
	for kind, owner := range map[string]*metav1.OwnerReference{
		"a bare VMI":              nil,
		"one of a VMI replicaset": {APIVersion: kubevirtv1.GroupVersion.String(), Kind: "VirtualMachineInstanceReplicaSet", Name: "set", UID: "22222222-0000-0000-0000-000000000001"},
	} {
		t.Run(kind, func(t *testing.T) { e.livesAlone(t, owner) })
	}
	t.Run("one of a pool", e.livesInPool)
	t.Run("networks of the template", e.replugged)
	t.Run("deleted in a migration", e.deletedInMigration)
	t.Run("asks for what another has", e.declaredTwice)
	t.Run("ended, and kept by KubeVirt", e.endedAndKept)
	t.Run("goes without having run", e.goesUnstarted)
}

// declare creates a VM that is not started by anybody.
func (e *env) declare(t *testing.T, name string, change ...func(*kubevirtv1.VirtualMachine)) *kubevirtv1.VirtualMachine {
	t.Helper()
	halted := kubevirtv1.RunStrategyHalted
	vm := &kubevirtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: "life", Name: name}}
	vm.Spec.RunStrategy = &halted
	vm.Spec.Template = &kubevirtv1.VirtualMachineInstanceTemplateSpec{}
	vm.Spec.Template.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
	vm.Spec.Template.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}
	for _, c := range change {
		c(vm)
	}
	if err := e.api.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	return vm
}

// begins starts a VM on a node as KubeVirt does, and waits until its launcher may attach.
func (e *env) begins(t *testing.T, vm *kubevirtv1.VirtualMachine, pod, node string) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := e.vmi(t, client.ObjectKeyFromObject(vm), ofVM(vm.UID), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec, v.Annotations = vm.Spec.Template.Spec, vm.Spec.Template.ObjectMeta.Annotations
	})
	e.mayAttach(t, e.launcher(t, vmi, pod, node, nil), v1alpha1.Attach{Chassis: node})
	return vmi
}

// ends lets an instance end, and deletes it.
func (e *env) ends(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance, pod string, phase kubevirtv1.VirtualMachineInstancePhase) {
	t.Helper()
	before := vmi.DeepCopy()
	vmi.Status.Phase = phase
	if err := e.api.Patch(t.Context(), vmi, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	e.asks(t, client.ObjectKeyFromObject(vmi), "godwit-none", "")
	e.deletePod(t, key(vmi.Namespace, pod))
	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, client.ObjectKeyFromObject(vmi), v1alpha1.PortReserved)
}

func (e *env) livesThrough(t *testing.T, strategy kubevirtv1.VirtualMachineRunStrategy, ends kubevirtv1.VirtualMachineInstancePhase, policy string) {
	name := map[bool]string{true: "goes-", false: "stays-"}[policy == ""] + map[kubevirtv1.VirtualMachineRunStrategy]string{
		kubevirtv1.RunStrategyHalted: "halted", kubevirtv1.RunStrategyManual: "manual", kubevirtv1.RunStrategyAlways: "always", kubevirtv1.RunStrategyRerunOnFailure: "rerun",
	}[strategy]
	vm := e.declare(t, name, func(vm *kubevirtv1.VirtualMachine) {
		vm.Spec.RunStrategy = &strategy
		if policy != "" {
			vm.Spec.Template.ObjectMeta.Annotations = map[string]string{v1alpha1.ReclaimAnnotation: policy}
		}
	})
	k := client.ObjectKeyFromObject(vm)
	port := e.vmPort(t, k, v1alpha1.PortReserved) // nothing has been started
	row := e.asks(t, k, "godwit-none", "")
	if len(port.Status.IPs) != 2 || !meta.IsStatusConditionTrue(port.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("the Port of a VM that is declared has %+v, want two addresses", port.Status)
	}
	if owned := len(port.OwnerReferences) == 1 && port.OwnerReferences[0].UID == vm.UID; owned != (policy == "") {
		t.Errorf("with reclaimPolicy %q the Port is owned by %+v", policy, port.OwnerReferences)
	}
	for i, node := range []string{"n1", "n2"} {
		pod := fmt.Sprintf("%s-%d", name, i)
		vmi := e.begins(t, vm, pod, node)
		if now := e.asks(t, k, node, ""); now.UUID != row.UUID || !slices.Equal(now.Addresses, row.Addresses) {
			t.Errorf("row %s with %v has become %s with %v", row.UUID, row.Addresses, now.UUID, now.Addresses)
		}
		e.ends(t, vmi, pod, ends)
	}
	if now := e.vmPort(t, k, v1alpha1.PortReserved); now.UID != port.UID || !slices.Equal(now.Status.IPs, port.Status.IPs) || now.Status.MAC != port.Status.MAC {
		t.Errorf("the Port was %+v, is %+v", port.Status, now.Status)
	}
}

// released waits until there is neither a Port nor a row of a VM, and its addresses can be had.
func (e *env) released(t *testing.T, port *v1alpha1.Port) {
	t.Helper()
	vm := key(port.Namespace, port.Spec.Target.Name)
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(port), &v1alpha1.Port{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("Port %s is still there (%w)", port.Name, err)
		}
		if row, err := e.nb.Port(t.Context(), ident.VMPort(vm.Namespace, vm.Name, ident.DefaultNetwork)); err != nil || row != nil {
			return fmt.Errorf("the row of VM %s is still there: %+v (%w)", vm, row, err)
		}
		return nil
	})
	again := newPort(port.Namespace, port.Name+"-again", port.Name+"-again", v1alpha1.PortSpec{IPs: port.Status.IPs})
	e.create(t, again)
	e.vmPort(t, client.ObjectKeyFromObject(again), v1alpha1.PortReserved)
}

// livesAlone: without a VM the instance owns its Port. The API server of this test has no garbage collector: the test is that.
func (e *env) livesAlone(t *testing.T, owner *metav1.OwnerReference) {
	name := "alone"
	if owner != nil {
		name = "replica"
	}
	controller := true
	vmi := e.vmi(t, key("life", name), func(v *kubevirtv1.VirtualMachineInstance) {
		if owner != nil {
			owner.Controller = &controller
			v.OwnerReferences = []metav1.OwnerReference{*owner}
		}
	})
	e.mayAttach(t, e.launcher(t, vmi, name+"-1", "n1", nil), v1alpha1.Attach{Chassis: "n1"})
	port := e.vmPort(t, key("life", name), v1alpha1.PortBound)
	if len(port.OwnerReferences) != 1 || port.OwnerReferences[0].UID != vmi.UID || port.Spec.Target.Kind != v1alpha1.KindVirtualMachineInstance {
		t.Errorf("the Port is for %+v and owned by %+v, want the instance", port.Spec.Target, port.OwnerReferences)
	}
	e.ends(t, vmi, name+"-1", kubevirtv1.Succeeded)
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	e.released(t, port)
}

// livesInPool: a pool makes VMs, which have Ports of their own.
func (e *env) livesInPool(t *testing.T) {
	var has []string
	for i := range 3 {
		vm := e.declare(t, fmt.Sprintf("pool-%d", i), func(vm *kubevirtv1.VirtualMachine) {
			controller := true
			vm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "pool.kubevirt.io/v1beta1", Kind: "VirtualMachinePool", Name: "pool", UID: "33333333-0000-0000-0000-000000000001", Controller: &controller}}
		})
		port := e.vmPort(t, client.ObjectKeyFromObject(vm), v1alpha1.PortReserved)
		if slices.Contains(has, port.Status.IPs[0]) || port.OwnerReferences[0].UID != vm.UID {
			t.Errorf("VM %s of a pool has %v, owned by %+v; others have %v", vm.Name, port.Status.IPs, port.OwnerReferences, has)
		}
		has = append(has, port.Status.IPs[0])
	}
}

// replugged: what the template says of networks counts at the next start. A NIC that is gone takes its Port along, unless that is to be kept.
func (e *env) replugged(t *testing.T) {
	for _, policy := range []v1alpha1.ReclaimPolicy{"", v1alpha1.ReclaimRetain} {
		name := "replugged" + map[bool]string{true: "-kept"}[policy != ""]
		vm := e.declare(t, name)
		k := client.ObjectKeyFromObject(vm)
		port := e.vmPort(t, k, v1alpha1.PortReserved)
		before := port.DeepCopy()
		port.Spec.ReclaimPolicy = policy
		if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		if policy == v1alpha1.ReclaimRetain {
			eventually(t, func() error {
				if err := e.api.Get(t.Context(), k, port); err != nil || len(port.OwnerReferences) > 0 {
					return fmt.Errorf("a Port that is kept is owned by %+v (%w)", port.OwnerReferences, err)
				}
				return nil
			})
		}
		vmi := e.begins(t, vm, name+"-1", "n1")
		e.template(t, vm, func(s *kubevirtv1.VirtualMachineInstanceSpec) {
			no := false
			s.Networks, s.Domain.Devices.Interfaces, s.Domain.Devices.AutoattachPodInterface = nil, nil, &no
		})
		e.keeps(t, k, "n1") // it runs
		before = port.DeepCopy()
		endedVMI := vmi.DeepCopy()
		vmi.Status.Phase = kubevirtv1.Succeeded
		if err := e.api.Patch(t.Context(), vmi, client.MergeFrom(endedVMI)); err != nil {
			t.Fatal(err)
		}
		e.deletePod(t, key("life", name+"-1"))
		if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		if policy == v1alpha1.ReclaimRetain {
			e.vmPort(t, k, v1alpha1.PortReserved)
			e.keeps(t, k, "godwit-none")
		} else {
			e.released(t, before)
		}
		e.template(t, vm, func(s *kubevirtv1.VirtualMachineInstanceSpec) {
			s.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
			s.Domain.Devices.Interfaces, s.Domain.Devices.AutoattachPodInterface = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}, nil
		})
		now := e.vmPort(t, k, v1alpha1.PortReserved)
		if same := now.UID == port.UID; same != (policy == v1alpha1.ReclaimRetain) {
			t.Errorf("reclaimPolicy %q: the NIC is there again, with Port %s, and was with %s", policy, now.UID, port.UID)
		}
	}
}

// template changes the template of a VM.
func (e *env) template(t *testing.T, vm *kubevirtv1.VirtualMachine, change func(*kubevirtv1.VirtualMachineInstanceSpec)) {
	t.Helper()
	before := vm.DeepCopy()
	change(&vm.Spec.Template.Spec)
	if err := e.api.Patch(t.Context(), vm, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// deletedInMigration: the VM, its Port and its migration are deleted while it is on its way. All goes when the instance has gone, and nothing before.
func (e *env) deletedInMigration(t *testing.T) {
	vm := e.declare(t, "doomed")
	k := client.ObjectKeyFromObject(vm)
	vmi := e.begins(t, vm, "doomed-1", "n1")
	vmim := e.migration(t, vmi)
	e.launcher(t, vmi, "doomed-2", "n2", vmim)
	e.asks(t, k, "n1,n2", "rarp")
	port := e.vmPort(t, k, v1alpha1.PortMigrating)
	for _, o := range []client.Object{vm, port, vmim} {
		if err := e.api.Delete(t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	if row := e.asks(t, k, "n1", ""); row.ExternalIDs[ident.KeyUID] != string(port.UID) {
		t.Errorf("the row is %v, want that of the Port, which is in use", row.ExternalIDs)
	}
	for _, pod := range []string{"doomed-1", "doomed-2"} {
		e.deletePod(t, key("life", pod))
	}
	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.released(t, port)
}

// declaredTwice: of two VMs that ask for one address the second waits, with a word at its Port, and has it when the first is gone.
func (e *env) declaredTwice(t *testing.T) {
	asks := func(vm *kubevirtv1.VirtualMachine) {
		vm.Spec.Template.ObjectMeta.Annotations = map[string]string{v1alpha1.IPsAnnotation: "10.244.88.8"}
	}
	first := e.declare(t, "first", asks)
	port := e.vmPort(t, client.ObjectKeyFromObject(first), v1alpha1.PortReserved)
	second := e.declare(t, "second", asks)
	waits := &v1alpha1.Port{}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(second), waits); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(waits.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Reason != "AddressTaken" || len(waits.Status.IPs) > 0 {
			return fmt.Errorf("the second has %+v, want it to wait", waits.Status)
		}
		return nil
	})
	bad := e.declare(t, "bad", func(vm *kubevirtv1.VirtualMachine) {
		vm.Spec.Template.ObjectMeta.Annotations = map[string]string{v1alpha1.MACAnnotation: "01:00:5e:00:00:01"}
	})
	e.told(t, bad, "PortRefused")
	for _, o := range []client.Object{first, port} {
		if err := e.api.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.vmPort(t, client.ObjectKeyFromObject(second), v1alpha1.PortReserved).Status.IPs[0]; got != "10.244.88.8" {
		t.Errorf("the second VM has %s, want what it asked for", got)
	}
}

// endedAndKept: an instance that has ended, and stays, uses its Port no more: the Port can be deleted, which makes another, and can be given to another VM.
func (e *env) endedAndKept(t *testing.T) {
	manual := kubevirtv1.RunStrategyManual
	vm := e.declare(t, "ended", func(vm *kubevirtv1.VirtualMachine) { vm.Spec.RunStrategy = &manual })
	k := client.ObjectKeyFromObject(vm)
	vmi := e.begins(t, vm, "ended-1", "n1")
	before := vmi.DeepCopy()
	vmi.Status.Phase = kubevirtv1.Succeeded
	if err := e.api.Patch(t.Context(), vmi, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	port := e.vmPort(t, k, v1alpha1.PortReserved)
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	var next *v1alpha1.Port
	eventually(t, func() error {
		if next = e.vmPort(t, k, v1alpha1.PortReserved); next.UID == port.UID {
			return fmt.Errorf("Port %s is still there: %+v", port.Name, next.Status)
		}
		return nil
	})
	if err := e.retarget(t, k, "ended-restored"); err != nil {
		t.Fatal(err)
	}
	e.isAt(t, next, "ended-restored")
}

// goesUnstarted: a Port with reclaimPolicy Delete goes with its VM though that has never run, whether it was there before the VM, or was to be kept until then.
func (e *env) goesUnstarted(t *testing.T) {
	owned := func(vm *kubevirtv1.VirtualMachine, want int) *v1alpha1.Port {
		t.Helper()
		var port *v1alpha1.Port
		eventually(t, func() error {
			port = e.vmPort(t, client.ObjectKeyFromObject(vm), v1alpha1.PortReserved)
			if n := len(port.OwnerReferences); n != want || n > 0 && port.OwnerReferences[0].UID != vm.UID {
				return fmt.Errorf("with reclaimPolicy %q the Port of a VM that does not run is owned by %+v, want %d owners", port.Spec.ReclaimPolicy, port.OwnerReferences, want)
			}
			return nil
		})
		return port
	}
	before := newPort("life", "before", "before", v1alpha1.PortSpec{ReclaimPolicy: v1alpha1.ReclaimDelete})
	e.create(t, before)
	e.vmPort(t, client.ObjectKeyFromObject(before), v1alpha1.PortReserved)
	owned(e.declare(t, "before"), 1)

	vm := e.declare(t, "was-kept", func(vm *kubevirtv1.VirtualMachine) {
		vm.Spec.Template.ObjectMeta.Annotations = map[string]string{v1alpha1.ReclaimAnnotation: "Retain"}
	})
	port := owned(vm, 0)
	was := port.DeepCopy()
	port.Spec.ReclaimPolicy = v1alpha1.ReclaimDelete
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(was)); err != nil {
		t.Fatal(err)
	}
	owned(vm, 1)
}

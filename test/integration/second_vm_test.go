package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// onNetworks gives a VMI NICs on NetworkAttachmentDefinitions beside the one on the pod network.
func onNetworks(names ...string) func(*kubevirtv1.VirtualMachineInstance) {
	return func(vmi *kubevirtv1.VirtualMachineInstance) {
		vmi.Status.Phase = kubevirtv1.Scheduling
		for _, name := range names {
			nic := kubevirtv1.DefaultBridgeNetworkInterface()
			nic.Name = name
			vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, *nic)
			vmi.Spec.Networks = append(vmi.Spec.Networks, kubevirtv1.Network{Name: name, NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: name}}})
		}
	}
}

// selects writes the networks annotation of a launcher as KubeVirt does.
func (e *env) selects(t *testing.T, pod *corev1.Pod, networks ...string) {
	t.Helper()
	var all []map[string]string
	for _, n := range networks {
		all = append(all, map[string]string{"name": n, "namespace": pod.Namespace, "interface": ident.LauncherInterface(n)})
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	before := pod.DeepCopy()
	pod.Annotations = map[string]string{nad.Annotation: string(text)}
	if err := e.api.Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// nic waits until a VM's row on a network asks for chassis, with or without an activation strategy.
func (e *env) nic(t *testing.T, vm types.NamespacedName, network, chassis, strategy string) *nbdb.LogicalSwitchPort {
	t.Helper()
	var row *nbdb.LogicalSwitchPort
	eventually(t, func() (err error) {
		row, err = e.nb.Port(t.Context(), ident.VMPort(vm.Namespace, vm.Name, network))
		if err == nil && (row == nil || row.Options[ident.OptionRequestedChassis] != chassis || row.Options[ident.OptionActivationStrategy] != strategy) {
			err = fmt.Errorf("the row of VM %s on network %s is %+v, want it to ask for %s with strategy %q", vm, network, row, chassis, strategy)
		}
		return err
	})
	return row
}

// carries waits until a launcher's identity has a NIC on a network.
func (e *env) carries(t *testing.T, pod *corev1.Pod, network string) v1alpha1.NIC {
	t.Helper()
	var nic v1alpha1.NIC
	eventually(t, func() error {
		id, err := e.identity(t.Context(), client.ObjectKeyFromObject(pod))
		if err != nil {
			return err
		}
		var ok bool
		if nic, ok = id.NIC(ident.LauncherInterface(network)); !ok || nic.Network != network {
			return fmt.Errorf("launcher %s has %+v, want a NIC on network %s", pod.Name, id.NICs, network)
		}
		return nil
	})
	return nic
}

// Every NIC of a VM is a Port of its own, and moves with the VM: all rows are prepared, committed, and stopped together. What a namespace may not have is refused.
func TestLifecycleSecondNetworksVM(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.installNADs(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24", "fd00:77::/64"}, NamespaceSelector: selectsAny("shop"), SecondNetworksOnly: true}),
		subnet("red", v1alpha1.SubnetSpec{CIDRs: []string{"10.79.0.0/24"}, NamespaceSelector: selectsAny("others")}))
	e.nad(t, key("shop", "blue"), onSubnet("blue"))
	e.nad(t, key("shop", "red"), onSubnet("red"))
	e.nad(t, key("shop", "other"), `{"type":"bridge"}`)

	vm := key("shop", "two")
	vmi := e.vmi(t, vm, onNetworks("blue", "other"))
	source := e.launcher(t, vmi, "two-1", "n1", nil)
	e.selects(t, source, "blue", "other")
	has := e.carries(t, source, "blue")
	began := e.nic(t, vm, "blue", "n1", "")
	e.asks(t, vm, "n1", "")
	if has.Subnet != "blue" || len(has.IPs) != 2 || began.Options[ident.OptionIfaceIDVer] != string(vmi.UID) || has.Activation != v1alpha1.ActivationNone {
		t.Errorf("the second NIC is %+v with row %+v", has, began)
	}
	var ports v1alpha1.PortList
	if err := e.api.List(t.Context(), &ports, client.InNamespace("shop")); err != nil || len(ports.Items) != 2 {
		t.Errorf("%d Ports (%v), want one on the pod network and one on blue: other is another plugin's", len(ports.Items), err)
	}

	vmim := e.migration(t, vmi)
	target := e.launcher(t, vmi, "two-2", "", vmim)
	e.selects(t, target, "blue", "other")
	bind(t, e, target, "n2")
	e.asks(t, vm, "n1,n2", "rarp")
	if row := e.nic(t, vm, "blue", "n1,n2", "rarp"); row.UUID != began.UUID {
		t.Errorf("the row was %s, is %s", began.UUID, row.UUID)
	}
	if got := e.carries(t, target, "blue"); got.Activation != v1alpha1.ActivationRARP || !slices.Equal(got.IPs, has.IPs) || got.MAC.String() != has.MAC.String() {
		t.Errorf("the target has %+v, want what the source has, blocked: %+v", got, has)
	}
	e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
	e.podPhase(t, source, corev1.PodSucceeded)
	e.asks(t, vm, "n2", "")
	e.nic(t, vm, "blue", "n2", "")
	if pms := e.records(t, vm, 1); len(pms[0].Spec.Ports) != 2 {
		t.Errorf("the PortMigration is of %+v, want both NICs", pms[0].Spec.Ports)
	}
	e.podPhase(t, target, corev1.PodSucceeded)
	e.asks(t, vm, string(ident.NoChassis), "")
	e.nic(t, vm, "blue", string(ident.NoChassis), "")

	refused := e.vmi(t, key("shop", "refused"), onNetworks("red"))
	e.told(t, refused, "SubnetNotAllowed")
	alone := e.vmi(t, key("shop", "alone"), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec.Networks, v.Spec.Domain.Devices.Interfaces = nil, nil
	}, onNetworks("blue"))
	e.told(t, alone, "PodNetworkMissing")
	t.Run("declared", e.declaredSecond)
	t.Run("named as no object can be", e.oddlyNamedSecond)
	t.Run("moved to one that has a Port", e.movedToTakenSecond)
}

// movedToTakenSecond: a VM keeps the Port that it has on a second network, however much older the one is that is moved to it: it starts with it, moves with it, and stops with it.
func (e *env) movedToTakenSecond(t *testing.T) {
	spare := newPort("shop", "another-blue", "nobody", v1alpha1.PortSpec{Subnet: "blue"})
	spare.Spec.Target.Network = "blue"
	e.create(t, spare)
	e.vmPort(t, key("shop", "another-blue"), v1alpha1.PortReserved)
	vm := key("shop", "restored")
	vmi := e.vmi(t, vm, onNetworks("blue"))
	has := e.vmPort(t, key("shop", "restored-blue"), v1alpha1.PortBound)
	if err := e.retarget(t, key("shop", "another-blue"), "restored"); err != nil {
		t.Fatal(err)
	}
	e.unready(t, key("shop", "another-blue"), "TargetTaken")
	source := e.launcher(t, vmi, "restored-1", "n1", nil)
	e.selects(t, source, "blue")
	if nic := e.carries(t, source, "blue"); nic.IPs[0].Addr().String() != has.Status.IPs[0] {
		t.Errorf("the VM has %v on blue, want %v, which it had", nic.IPs, has.Status.IPs)
	}
	began := e.nic(t, vm, "blue", "n1", "")

	vmim := e.migration(t, vmi)
	target := e.launcher(t, vmi, "restored-2", "", vmim)
	e.selects(t, target, "blue")
	bind(t, e, target, "n2")
	e.nic(t, vm, "blue", "n1,n2", "rarp")
	e.carries(t, target, "blue")
	e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
	e.podPhase(t, source, corev1.PodSucceeded)
	e.nic(t, vm, "blue", "n2", "")
	e.podPhase(t, target, corev1.PodSucceeded)
	if row := e.nic(t, vm, "blue", string(ident.NoChassis), ""); row.UUID != began.UUID {
		t.Errorf("the row was %s, is %s", began.UUID, row.UUID)
	}
}

// oddlyNamedSecond: the names that KubeVirt takes for networks are more than those of objects. A NIC on such a network has its Port too.
func (e *env) oddlyNamedSecond(t *testing.T) {
	vmi := e.vmi(t, key("shop", "odd"), onNetworks("blue"), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec.Networks[1].Name, v.Spec.Domain.Devices.Interfaces[1].Name = "Net_1-", "Net_1-"
	})
	launcher := e.launcher(t, vmi, "odd-1", "n1", nil)
	e.selects(t, launcher, "Net_1-")
	if nic := e.carries(t, launcher, "Net_1-"); nic.Subnet != "blue" {
		t.Errorf("the NIC is %+v, want one in Subnet blue", nic)
	}
	e.nic(t, key("shop", "odd"), "Net_1-", "n1", "")
}

// declaredSecond: a VM's NICs on second networks have their Ports from when it is declared, whenever the definition comes, and until its template and its instance have them no more.
func (e *env) declaredSecond(t *testing.T) {
	e.namespace(t, "life", map[string]string{"subnet": "shop"})
	e.nad(t, key("life", "blue"), onSubnet("blue"))
	e.nad(t, key("life", "other"), `{"type":"bridge"}`)
	with := func(names ...string) func(*kubevirtv1.VirtualMachineInstanceSpec) {
		return func(s *kubevirtv1.VirtualMachineInstanceSpec) {
			vmi := &kubevirtv1.VirtualMachineInstance{}
			vmi.Spec.Networks, vmi.Spec.Domain.Devices.Interfaces = slices.Clip(s.Networks[:1]), slices.Clip(s.Domain.Devices.Interfaces[:1])
			onNetworks(names...)(vmi)
			s.Networks, s.Domain.Devices.Interfaces = vmi.Spec.Networks, vmi.Spec.Domain.Devices.Interfaces
		}
	}
	vm := e.declare(t, "many", func(vm *kubevirtv1.VirtualMachine) { with("blue", "late", "other")(&vm.Spec.Template.Spec) })
	k := client.ObjectKeyFromObject(vm)
	port := e.vmPort(t, key("life", "many-blue"), v1alpha1.PortReserved)
	row := e.nic(t, k, "blue", string(ident.NoChassis), "")
	if len(port.Status.IPs) != 2 || len(port.OwnerReferences) != 1 || port.OwnerReferences[0].UID != vm.UID {
		t.Errorf("before the VM has started its Port is %+v, owned by %+v", port.Status, port.OwnerReferences)
	}
	e.nad(t, key("life", "late"), onSubnet("blue"))
	late := e.vmPort(t, key("life", "many-late"), v1alpha1.PortReserved)
	var ports v1alpha1.PortList
	if err := e.api.List(t.Context(), &ports, client.InNamespace("life")); err != nil || len(ports.Items) != 3 {
		t.Errorf("%d Ports (%v), want one on the pod network, on blue, and on late: other is another plugin's", len(ports.Items), err)
	}

	vmi := e.begins(t, vm, "many-1", "n1")
	pod := &corev1.Pod{}
	if err := e.api.Get(t.Context(), key("life", "many-1"), pod); err != nil {
		t.Fatal(err)
	}
	pod.Annotations = nil // what others have written stays
	e.selects(t, pod, "blue", "late", "other")
	if now := e.nic(t, k, "blue", "n1", ""); now.UUID != row.UUID {
		t.Errorf("the row was %s, is %s", row.UUID, now.UUID)
	}
	e.template(t, vm, with("late")) // blue counts until the end of what runs
	before := vmi.DeepCopy()
	with("blue")(&vmi.Spec) // late was unplugged: it is not the template that decides, but both
	if err := e.api.Patch(t.Context(), vmi, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	e.nic(t, k, "blue", "n1", "")
	e.template(t, vm, with())
	e.noVMPort(t, late) // while the VM runs
	e.nic(t, k, "blue", "n1", "")
	e.ends(t, vmi, "many-1", kubevirtv1.Succeeded)
	e.noVMPort(t, port)
	e.vmPort(t, k, v1alpha1.PortReserved)
}

// noVMPort waits until a VM's Port on a network is gone, and its row.
func (e *env) noVMPort(t *testing.T, port *v1alpha1.Port) {
	t.Helper()
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(port), &v1alpha1.Port{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("Port %s is still there (%w)", port.Name, err)
		}
		row, err := e.nb.Port(t.Context(), ident.VMPort(port.Namespace, port.Spec.Target.Name, port.Spec.Target.Network))
		if err == nil && row != nil {
			err = fmt.Errorf("Port %s is gone, its row is %+v", port.Name, row)
		}
		return err
	})
}

// bind gives a pod its node, as the scheduler does.
func bind(t *testing.T, e *env, pod *corev1.Pod, node string) {
	t.Helper()
	b := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	b.Namespace, b.Name = pod.Namespace, pod.Name
	if err := e.api.SubResource("binding").Create(t.Context(), pod, b); err != nil {
		t.Fatal(err)
	}
}

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// The definitions without which there is nothing to watch.
const (
	vmDefinition   = "virtualmachines.kubevirt.io"
	vmiDefinition  = "virtualmachineinstances.kubevirt.io"
	vmimDefinition = "virtualmachineinstancemigrations.kubevirt.io"
)

// kubevirt is the presence of KubeVirt in the cluster: its kinds can only be watched when they exist, and it may be installed at any time.
type kubevirt struct {
	arrival
	indexed bool // start, which watches VMIs and migrations and lets VMs be reconciled, has got as far as that
	// operations: VirtualMachineOperations are indexed.
	operations bool

	vms *trigger
	// ready: VMIs can be read.
	ready atomic.Bool
}

func newKubevirt(mgr manager.Manager, log *slog.Logger, vms *trigger) *kubevirt {
	return &kubevirt{vms: vms, arrival: arrival{
		mgr: mgr, log: log, what: "KubeVirt", means: "VMs have ports of their own", definitions: []string{vmDefinition, vmiDefinition, vmimDefinition},
		kinds: []schema.GroupVersionKind{
			kubevirtv1.VirtualMachineGroupVersionKind, kubevirtv1.VirtualMachineInstanceGroupVersionKind, kubevirtv1.VirtualMachineInstanceMigrationGroupVersionKind,
		},
	}}
}

// enqueue asks for a VM to be reconciled. Without KubeVirt there is none; when it comes, every VM and Port is looked at.
func (k *kubevirt) enqueue(vm types.NamespacedName) {
	if k.ready.Load() {
		k.vms.enqueue(vm)
	}
}

// carries says whether a pod's interface is its VM's, so that the pod has none of its own. A launcher whose VMI is not seen is taken for one: it waits.
func (k *kubevirt) carries(ctx context.Context, api client.Reader, pod *corev1.Pod) (bool, error) {
	name, uid, ok := migration.LauncherOf(pod)
	if !ok {
		return false, nil
	}
	vmi, err := k.vmi(ctx, api, types.NamespacedName{Namespace: pod.Namespace, Name: name})
	return vmi == nil || vmi.UID != uid || hasPodNetwork(vmi), err
}

// vmi is a VM's instance, nil if it has none or KubeVirt is not there. It must not be changed.
func (k *kubevirt) vmi(ctx context.Context, api client.Reader, vm types.NamespacedName) (*kubevirtv1.VirtualMachineInstance, error) {
	if !k.ready.Load() {
		return nil, nil
	}
	var vmi kubevirtv1.VirtualMachineInstance
	err := api.Get(ctx, vm, &vmi, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read VMI %s: %w", vm, err)
	}
	return &vmi, nil
}

// declared is the instance that a VM would have if it was started now, nil if there is no such VM or KubeVirt is not there. It must not be changed.
func (k *kubevirt) declared(ctx context.Context, api client.Reader, vm types.NamespacedName) (*kubevirtv1.VirtualMachineInstance, error) {
	if !k.ready.Load() {
		return nil, nil
	}
	var declared kubevirtv1.VirtualMachine
	err := api.Get(ctx, vm, &declared, client.UnsafeDisableDeepCopy)
	if err == nil && declared.Spec.Template != nil {
		return instanceOf(&declared), nil
	}
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read VM %s: %w", vm, err)
	}
	return nil, nil
}

// vmOf names the VM that an object belongs to, zero if none.
func vmOf(o client.Object) types.NamespacedName {
	name := ""
	switch obj := o.(type) {
	case *kubevirtv1.VirtualMachine, *kubevirtv1.VirtualMachineInstance:
		name = obj.GetName()
	case *kubevirtv1.VirtualMachineInstanceMigration:
		name = obj.Spec.VMIName
	case *v1alpha1.Port:
		name = obj.Spec.Target.Name
	case *v1alpha1.PortMigration:
		name = obj.Spec.VMI.Name
	case *corev1.Pod:
		name, _, _ = migration.LauncherOf(obj)
	}
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: name}
}

// hasPodNetwork says whether a VMI has a NIC on the pod network. Without a word KubeVirt gives it one.
func hasPodNetwork(vmi *kubevirtv1.VirtualMachineInstance) bool {
	for i := range vmi.Spec.Networks {
		if vmi.Spec.Networks[i].Pod != nil {
			return true
		}
	}
	auto := vmi.Spec.Domain.Devices.AutoattachPodInterface
	return len(vmi.Spec.Networks) == 0 && (auto == nil || *auto)
}

// macOf is the MAC address that a VMI asks for on a network, empty if none.
func macOf(vmi *kubevirtv1.VirtualMachineInstance, network string) string {
	if nic := interfaceOf(vmi, network); nic != nil {
		return nic.MacAddress
	}
	return ""
}

// interfaceOf is a VMI's interface on a network, nil if it has none.
func interfaceOf(vmi *kubevirtv1.VirtualMachineInstance, network string) *kubevirtv1.Interface {
	for i := range vmi.Spec.Domain.Devices.Interfaces {
		nic := &vmi.Spec.Domain.Devices.Interfaces[i]
		if onPod := onPodNetwork(vmi, nic.Name); onPod == (network == podNetwork) && (onPod || nic.Name == network) {
			return nic
		}
	}
	return nil
}

// pluginBound says whether a binding plugin connects a VMI's interface. For KubeVirt's own bridge and masquerade bindings a server in the launcher answers DHCPv4, and two servers on one
// link are one too many; whether a plugin has one is not written anywhere. If it has, OVN is not asked: the request does not leave the pod.
func pluginBound(vmi *kubevirtv1.VirtualMachineInstance, network string) bool {
	nic := interfaceOf(vmi, network)
	return nic != nil && nic.Binding != nil
}

// onPodNetwork says whether a VMI's interface of that name is on the pod network.
func onPodNetwork(vmi *kubevirtv1.VirtualMachineInstance, nic string) bool {
	for i := range vmi.Spec.Networks {
		if n := &vmi.Spec.Networks[i]; n.Name == nic {
			return n.Pod != nil
		}
	}
	return false
}

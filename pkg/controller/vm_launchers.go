package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// identify writes into the annotation of each live launcher that may attach who its VM is in the network. One that may not gets nothing: an answer of the API
// server to wait for is in the way of the next decision, which for a migration's target comes as soon as it has a node.
func (r *vmReconciler) identify(ctx context.Context, o observed, s migration.Snapshot, d migration.Decision) error {
	port := o.ports[podNetwork]
	if o.vmi == nil || port == nil || len(port.Status.IPs) == 0 || !o.agreed(port) {
		return nil // the Port's reconciler asks for this VM again when it has its addresses and its MAC
	}
	base, err := r.identity(ctx, o, port)
	if err != nil || base.MTU == 0 {
		return err
	}
	var errs []error
	for _, l := range s.Launchers {
		pod := podNamed(o.pods, l.Name)
		id := base
		id.PodUID = l.UID
		id.Attach = permission(pod)
		for _, a := range d.Attach {
			if a.PodUID == l.UID && o.versioned() && !permits(id.Attach, a) {
				id.Attach = &v1alpha1.Attach{Chassis: string(a.Chassis), Migration: a.Migration, Activation: a.Activation}
			}
		}
		if id.Attach == nil {
			continue
		}
		var may map[string]v1alpha1.Activation
		if o.versioned() {
			may = d.NICs(l)
		}
		if id.NICs, err = r.launcherNICs(ctx, o, pod, may); err != nil {
			return err
		}
		errs = append(errs, writeIdentity(ctx, r.api, pod, id))
	}
	return errors.Join(errs...)
}

// agreed says whether a Port has the MAC that its VMI's definition asks for, if it asks for one. Its reconciler sees the VMI later than the VM's may; and a launcher's link keeps the MAC with
// which it was made, from which nothing passes port security once the Port has the other. A VM that is in the network moves with the MAC that it has there, though another was refused.
func (o observed) agreed(port *v1alpha1.Port) bool {
	network := port.Spec.Target.Network
	for _, pod := range o.pods {
		id := identityOf(pod)
		if id.VMI == nil || id.VMI.UID != string(o.vmi.UID) { // of an earlier instance
			continue
		}
		if network == podNetwork && id.MAC.String() == port.Status.MAC || slices.ContainsFunc(id.NICs, func(n v1alpha1.NIC) bool { return n.Network == network && n.MAC.String() == port.Status.MAC }) {
			return true
		}
	}
	asked, err := net.ParseMAC(macOf(o.vmi, network))
	return err != nil || len(asked) != 6 || asked.String() == port.Status.MAC
}

// identity is what all launchers of a VM have in common.
func (r *vmReconciler) identity(ctx context.Context, o observed, port *v1alpha1.Port) (v1alpha1.Identity, error) {
	var subnet v1alpha1.Subnet
	if err := r.api.Get(ctx, types.NamespacedName{Name: port.Status.Subnet}, &subnet, client.UnsafeDisableDeepCopy); err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("read Subnet %s of Port %s: %w", port.Status.Subnet, port.Name, err)
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, subnet.Spec.Gateways, nil) // what is excluded is no part of an identity
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("Subnet %s: %w", subnet.Name, err)
	}
	mac, err := net.ParseMAC(port.Status.MAC)
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("status of Port %s: %w", port.Name, err)
	}
	id := v1alpha1.Identity{
		Subnet: subnet.Name, MAC: v1alpha1.MAC(mac), Gateways: spec.Gateways, MTU: subnet.Spec.MTU,
		VMI: &v1alpha1.Instance{Name: o.vmi.Name, UID: string(o.vmi.UID)},
	}
	for i, a := range parseAddrs(port.Status.IPs) {
		if i < len(spec.CIDRs) {
			id.IPs = append(id.IPs, netip.PrefixFrom(a, spec.CIDRs[i].Bits()))
		}
	}
	if id.MTU == 0 && r.alloc.restore.isDone() { // before, the smallest MTU may be that of some nodes; the Port, which waits for it, asks for its VM again
		id.MTU = r.alloc.mtu()
	}
	if running := runningMTU(o.pods, o.vmi); running != 0 {
		id.MTU = running // a guest would not notice another while it moves
	}
	return id, nil
}

// runningMTU is the MTU that the VMI's launchers were told, 0 if none was.
func runningMTU(pods []*corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) int {
	for _, pod := range pods {
		id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
		if err == nil && id.VMI != nil && id.VMI.UID == string(vmi.UID) && id.PodUID == string(pod.UID) {
			return id.MTU
		}
	}
	return 0
}

// permission is the one that a launcher has. It is never taken back: OVN refuses a pod whose chassis is not asked for any more.
func permission(pod *corev1.Pod) *v1alpha1.Attach {
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil || id.PodUID != string(pod.UID) {
		return nil
	}
	return id.Attach
}

// permits: the pod has the permission already, and how its port began there stays as it was.
func permits(have *v1alpha1.Attach, a migration.Attach) bool {
	return have != nil && have.Chassis == string(a.Chassis) && have.Migration == a.Migration
}

func podNamed(pods []*corev1.Pod, name string) *corev1.Pod {
	for _, pod := range pods {
		if pod.Name == name {
			return pod
		}
	}
	return &corev1.Pod{}
}

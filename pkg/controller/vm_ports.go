package controller

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// maxName is how long the name of an API object may be.
const maxName = 253

// portsOf are the Ports for a VM, the oldest first. They must not be changed.
func portsOf(ctx context.Context, api client.Reader, vm types.NamespacedName) ([]*v1alpha1.Port, error) {
	var list v1alpha1.PortList
	err := api.List(ctx, &list, client.InNamespace(vm.Namespace), client.MatchingFields{indexTarget: vm.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list the Ports of VM %s: %w", vm, err)
	}
	var out []*v1alpha1.Port
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	slices.SortFunc(out, olderPort)
	return out, nil
}

// olderPort orders Ports by age, then name.
func olderPort(a, b *v1alpha1.Port) int {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// ownerOf is what a VMI's Ports live as long as: its VM, or the VMI itself if it has none.
func ownerOf(vmi *kubevirtv1.VirtualMachineInstance) metav1.OwnerReference {
	if owner := metav1.GetControllerOfNoCopy(vmi); owner != nil && owner.Kind == v1alpha1.KindVirtualMachine {
		return metav1.OwnerReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name, UID: owner.UID}
	}
	return metav1.OwnerReference{
		APIVersion: kubevirtv1.GroupVersion.String(), Kind: v1alpha1.KindVirtualMachineInstance, Name: vmi.Name, UID: vmi.UID,
	}
}

// own makes the VM of a VMI, nil if there is none, an owner of its Port, with whom the Port goes, or nobody, as the Port's reclaimPolicy says. It reports whether that was otherwise.
func own(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) (changed bool) {
	before := slices.Clone(port.OwnerReferences)
	port.OwnerReferences = slices.DeleteFunc(port.OwnerReferences, func(o metav1.OwnerReference) bool { return ofVM(o) && o.Name != port.Spec.Target.Name }) // of the VM that it was moved from
	switch port.Spec.ReclaimPolicy {
	case v1alpha1.ReclaimRetain:
		port.OwnerReferences = slices.DeleteFunc(port.OwnerReferences, ofVM)
	case v1alpha1.ReclaimDelete:
		if uses(vmi, port) && !slices.ContainsFunc(port.OwnerReferences, ofVM) {
			port.OwnerReferences = append(port.OwnerReferences, ownerOf(vmi))
		}
	}
	return !slices.EqualFunc(before, port.OwnerReferences, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID })
}

// ofVM says whether an owner is a VM or a VMI.
func ofVM(o metav1.OwnerReference) bool {
	return o.Kind == v1alpha1.KindVirtualMachine || o.Kind == v1alpha1.KindVirtualMachineInstance
}

// uses says whether a VMI, nil if there is none, uses a Port. A Port that was made for another VM of the name, which has been deleted, is not its own; one
// that somebody made beforehand is.
func uses(vmi *kubevirtv1.VirtualMachineInstance, port *v1alpha1.Port) bool {
	if vmi == nil {
		return false
	}
	owner, owned := ownerOf(vmi), false
	for _, o := range port.OwnerReferences {
		if o.UID == owner.UID {
			return true
		}
		owned = owned || ofVM(o)
	}
	return !owned
}

// carries says whether a VMI that may run uses a Port and has a NIC for it: one that was unplugged while the VM runs needs none.
func carries(vmi *kubevirtv1.VirtualMachineInstance, port *v1alpha1.Port) bool {
	return inUse(vmi, port) && slices.Contains(networksOf(vmi), port.Spec.Target.Network)
}

// inUse says whether a VMI that may run uses a Port: one that has ended does not, though it stays there until it is started again or deleted.
func inUse(vmi *kubevirtv1.VirtualMachineInstance, port *v1alpha1.Port) bool {
	return uses(vmi, port) && !vmi.IsFinal()
}

// portFor is the Port of a VMI's NIC among those of its name, nil if there is none.
func portFor(vmi *kubevirtv1.VirtualMachineInstance, network string, ports []*v1alpha1.Port) *v1alpha1.Port {
	for _, p := range ports {
		if p.Spec.Target.Network == network && uses(vmi, p) {
			return p
		}
	}
	return nil
}

// newPort is the Port that is made for a NIC for which nobody has made one. It has the VM's name where that is free.
func newPort(vmi *kubevirtv1.VirtualMachineInstance, network string) *v1alpha1.Port {
	owner, w := ownerOf(vmi), wishesFor(vmi, network)
	port := &v1alpha1.Port{
		ObjectMeta: metav1.ObjectMeta{Namespace: vmi.Namespace, Name: vmi.Name, OwnerReferences: []metav1.OwnerReference{owner}},
		Spec: v1alpha1.PortSpec{
			Target: v1alpha1.PortTarget{Kind: owner.Kind, Name: vmi.Name, Network: network}, Subnet: w.subnet, IPs: w.ips, MAC: w.mac, ReclaimPolicy: v1alpha1.ReclaimPolicy(w.reclaim),
		},
	}
	own(port, vmi)
	if w.subnet != "" { // by it the Port is held to the Subnets that are for its namespace: whoever may make a VM need not be allowed to make Ports
		port.Annotations = map[string]string{v1alpha1.SubnetAnnotation: w.subnet}
	}
	return port
}

// longName is a name for an object that belongs to another whose name is taken: name and digits that follow from what makes it unique.
func longName(name, unique string) string {
	sum := sha256.Sum256([]byte(unique))
	return strings.TrimRight(name[:min(len(name), maxName-9)], ".-") + "-" + hex.EncodeToString(sum[:4])
}

// ensurePort returns the Port of a VMI's NIC, which it makes if there is none; nil as long as another VM's of that name is being deleted.
func (r *vmReconciler) ensurePort(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance, network string) (*v1alpha1.Port, error) {
	key := client.ObjectKeyFromObject(vmi)
	ports, err := portsByUse(ctx, r.api, r.nb, key)
	if err != nil {
		return nil, err
	}
	if port := portFor(vmi, network, ports); port != nil || vmi.DeletionTimestamp != nil || vmi.IsFinal() {
		return port, nil
	}
	for _, p := range ports {
		if p.Spec.Target.Network == network {
			return nil, nil // of another VM of the name; its deletion asks for this VM again
		}
	}
	return r.makePort(ctx, vmi, network)
}

// makePort creates the Port of a VMI's NIC: under the VM's name, or under a longer one where that is taken. It returns nil where the cache is behind, whose Port
// asks for this VM again, and where both names are others', which an event says.
func (r *vmReconciler) makePort(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance, network string) (*v1alpha1.Port, error) {
	vm := client.ObjectKeyFromObject(vmi)
	names := []string{vmi.Name, longName(vmi.Name, network)}
	for _, name := range names {
		port := newPort(vmi, network)
		port.Name = name
		err := r.api.Create(ctx, port)
		if err == nil {
			r.log.Info("Port made", "port", port.Namespace+"/"+port.Name, "vm", vmi.Name, "network", network)
			if name != vmi.Name {
				r.events.Eventf(concerned(vmi), port, corev1.EventTypeWarning, "PortIsAnothers", "MakePort",
					"Port %s is for another VM: this one has got Port %s, with addresses and a MAC of its own", vmi.Name, name)
			}
			return port, nil
		}
		if apierrors.IsInvalid(err) {
			r.events.Eventf(concerned(vmi), nil, corev1.EventTypeWarning, "PortRefused", "MakePort",
				"%v: the VM has no network; correct the annotations godwit.dev/… of its template, and start it again", err)
			return nil, nil
		}
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil, nil // the VM goes too
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create the Port of VM %s on network %s: %w", vm, network, err)
		}
		var taken v1alpha1.Port
		if err := r.api.Get(ctx, client.ObjectKeyFromObject(port), &taken); err != nil || vmKey(&taken) == vm {
			return nil, client.IgnoreNotFound(err)
		}
	}
	r.events.Eventf(concerned(vmi), nil, corev1.EventTypeWarning, "PortNameTaken", "MakePort",
		"Ports %s are other VMs': the VM has no network; make a Port for it under another name, or delete one of them", strings.Join(names, " and "))
	return nil, nil
}

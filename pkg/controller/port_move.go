package controller

import (
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// A Port whose target is changed takes its addresses and its MAC to another VM. The API lets that be done while no VM uses it (its definition's rule on status.phase). Should a VM of the old
// name have started in that very moment, the move counts: that VM gets another Port.

// leave deletes the row that a Port had for the VM that it was for before, so that its addresses are never in two rows, and nobody else's when it goes.
func (r *portReconciler) leave(ctx context.Context, port *v1alpha1.Port) error {
	if port.Generation <= 1 {
		return nil // its spec is as it was made: it has been for no other VM
	}
	name := rowName(port)
	have, err := r.nb.Port(ctx, name)
	if err != nil || holds(port, have) {
		return err
	}
	return r.vacate(ctx, client.ObjectKeyFromObject(port), port.UID, name)
}

// lost sees to what a Port had that is gone without having been finalized: somebody removed its finalizer.
func (r *portReconciler) lost(ctx context.Context, port types.NamespacedName) error {
	h := portHolder(port)
	if uid := r.alloc.uidOf(h); uid != "" {
		if err := r.vacate(ctx, port, uid, ""); err != nil {
			return fmt.Errorf("Port %s, which is gone: %w", port, err)
		}
	}
	r.alloc.release(h)
	return nil
}

// vacate deletes the rows that a Port has, whichever VM they are of, and takes their VMs out of NetworkPolicies, those too whose rows were never made;
// all but the interface that it is for now, if any.
func (r *portReconciler) vacate(ctx context.Context, port types.NamespacedName, uid types.UID, now ident.PortName) error {
	rows, err := r.nb.Ports(ctx)
	if err != nil {
		return err
	}
	for _, name := range r.policies.vmsOf(uid) {
		if name != now {
			r.policies.forgetVM(name, uid)
		}
	}
	for _, row := range rows {
		if row.ExternalIDs[ident.OwnerKey] != ident.OwnerVM || row.ExternalIDs[ident.KeyUID] != string(uid) {
			continue
		}
		name := ident.PortName(row.Name)
		r.anchors.forget(name)
		if err := r.nb.Apply(ctx, ovn.DeletePort(name), r.policies.pending(), r.anchors.pending()); err != nil {
			return fmt.Errorf("delete row %s: %w", name, err)
		}
		r.log.Info("the Port has left a VM", "port", port, "row", name)
		r.virt.enqueue(types.NamespacedName{Namespace: port.Namespace, Name: row.ExternalIDs[ident.KeyName]})
	}
	if err := r.nb.Apply(ctx, r.policies.pending()); err != nil {
		return fmt.Errorf("take it out of NetworkPolicies: %w", err)
	}
	return nil
}

// holds says whether a row, nil if there is none, is a Port's.
func holds(port *v1alpha1.Port, row *nbdb.LogicalSwitchPort) bool {
	return row != nil && row.ExternalIDs[ident.KeyUID] == string(port.UID)
}

// holderFirst puts the Port that has the row before those that merely are older: one that is moved to a VM does not take the place of the one that the VM has.
func holderFirst(ports []*v1alpha1.Port, row *nbdb.LogicalSwitchPort) {
	if i := slices.IndexFunc(ports, func(p *v1alpha1.Port) bool { return holds(p, row) }); i > 0 {
		holder := ports[i]
		copy(ports[1:i+1], ports[:i])
		ports[0] = holder
	}
}

// holders are the Ports by the row that they have, or get when there is none: one for each interface, however many Ports are for it.
func holders(ports []v1alpha1.Port, rows map[ident.PortName]*nbdb.LogicalSwitchPort) map[ident.PortName]*v1alpha1.Port {
	out := map[ident.PortName]*v1alpha1.Port{}
	for i := range ports {
		p, name := &ports[i], rowName(&ports[i])
		if has := out[name]; has == nil || holds(p, rows[name]) || !holds(has, rows[name]) && olderPort(p, has) < 0 {
			out[name] = p
		}
	}
	return out
}

// portsByUse are the Ports for a VM: of each interface the one that has the row first, then the oldest. They must not be changed.
func portsByUse(ctx context.Context, api client.Reader, nb *ovn.NB, vm types.NamespacedName) ([]*v1alpha1.Port, error) {
	ports, err := portsOf(ctx, api, vm)
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	for _, p := range ports {
		seen[p.Spec.Target.Network]++
	}
	for network, n := range seen {
		if n == 1 {
			continue
		}
		row, err := nb.Port(ctx, ident.VMPort(vm.Namespace, vm.Name, network))
		if err != nil {
			return nil, err
		}
		holderFirst(ports, row)
	}
	return ports, nil
}

// first checks that no other Port has the same interface, or is older and for it.
func (r *portReconciler) first(ctx context.Context, port *v1alpha1.Port) (metav1.Condition, error) {
	others, err := portsByUse(ctx, r.api, r.nb, vmKey(port))
	if err != nil {
		return metav1.Condition{}, err
	}
	for _, o := range others {
		if o.UID == port.UID {
			break
		}
		if o.Spec.Target.Network == port.Spec.Target.Network {
			return condition(metav1.ConditionFalse, v1alpha1.ReasonTargetTaken, fmt.Sprintf("Port %s is for the same interface: delete one of the two", o.Name)), nil
		}
	}
	return metav1.Condition{}, nil
}

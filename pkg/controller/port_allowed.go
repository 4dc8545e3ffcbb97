package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
)

// What a VM may send from besides its own addresses must be nobody else's: an address of a Subnet's range is its holder's alone, whoever that is or will be. One that several VMs shall share is
// excluded from its Subnet first.

// allowed are those of a Port's allowedAddresses that its VM may send from. The others are told by a condition in next and, once, by an event.
func (r *portReconciler) allowed(ctx context.Context, port *v1alpha1.Port, next *v1alpha1.PortStatus) ([]string, error) {
	var held []ipam.Spec
	if len(port.Spec.AllowedAddresses) > 0 {
		var subnets v1alpha1.SubnetList
		if err := r.api.List(ctx, &subnets, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list Subnets to check allowedAddresses: %w", err)
		}
		held = append(held, ipam.Spec{CIDRs: r.alloc.join.Spec().CIDRs}, hairpins())
		for i := range subnets.Items {
			s := &subnets.Items[i].Spec
			if spec, err := ipam.ParseSpec(s.CIDRs, s.Gateways, s.ExcludeIPs); err == nil { // one that is wrong gives nobody addresses
				held = append(held, spec)
			}
		}
	}
	granted, refused := grant(port.Spec.AllowedAddresses, held)
	next.Conditions = slices.Clone(next.Conditions)
	if len(refused) == 0 {
		meta.RemoveStatusCondition(&next.Conditions, v1alpha1.ConditionAllowed)
		return granted, nil
	}
	c := metav1.Condition{
		Type: v1alpha1.ConditionAllowed, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonOverlaps, ObservedGeneration: port.Generation,
		Message: fmt.Sprintf("the VM may not send from %s: addresses there are, or will be, others'; exclude what several shall share from the Subnet (excludeIPs)", strings.Join(refused, ", ")),
	}
	if meta.SetStatusCondition(&next.Conditions, c) {
		r.events.Eventf(port, nil, corev1.EventTypeWarning, "AllowedAddressesRefused", "AttachPort", "%s", c.Message)
	}
	return granted, nil
}

// hairpins are the addresses from which pods see themselves through Services. NetworkPolicies exempt them: from them no port may send.
func hairpins() ipam.Spec {
	var s ipam.Spec
	for _, a := range ident.HairpinSources() {
		s.CIDRs = append(s.CIDRs, netip.PrefixFrom(a, a.BitLen()))
	}
	return s
}

// grant tells addresses and ranges of which nobody has a part from the others.
func grant(asked []string, held []ipam.Spec) (granted, refused []string) {
	for _, text := range asked {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, err := netip.ParseAddr(text)
			if err != nil {
				refused = append(refused, text) // the API takes none such
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if slices.ContainsFunc(held, func(s ipam.Spec) bool { return s.Holds(p) }) {
			refused = append(refused, text)
		} else {
			granted = append(granted, text)
		}
	}
	return granted, refused
}

// allowing asks for the Ports whose allowedAddresses another Subnet may hold.
func (r *portReconciler) allowing(ctx context.Context, _ client.Object) []reconcile.Request {
	var all v1alpha1.PortList
	if err := r.api.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		r.log.Error("the Ports with allowedAddresses cannot be found", "error", err)
	}
	var out []reconcile.Request
	for i := range all.Items {
		if len(all.Items[i].Spec.AllowedAddresses) > 0 {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
		}
	}
	return out
}

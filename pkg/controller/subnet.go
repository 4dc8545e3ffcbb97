package controller

// Subnet reconciler.
// In:   Subnets (also others, that may be in the way), the addresses of Nodes, the ClusterIPs of Services, how many of their addresses are in use, the smallest MTU of all nodes, what egress.go finds out.
// Out:  the Subnet's finalizer and status; LogicalSwitch subnet/NAME, its router-type LogicalSwitchPort uplink/subnet/NAME, LogicalRouterPort
//       gateway/subnet/NAME, DHCP_Options of its ranges, and the LogicalRouterPolicies that keep the Subnet's traffic inside the network; external_ids godwit.dev/{owner,name,family}.
//       If the Subnet's pods do not leave through their own nodes, and there are none yet, LogicalRouterPolicies that close it until egress.go writes them.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

type subnetReconciler struct {
	api    client.Client
	nb     *ovn.NB
	alloc  *allocations
	queues *queues
	egress *egressState
	hosts  *hosts
	join   ipam.Spec
	// services: Godwit serves them (Config.Services), and their informer is there.
	services bool
	log      *slog.Logger
}

// Reasons of the conditions of Subnets and Ports, besides those that others read (package v1alpha1).
const (
	reasonReady       = "InNetwork"
	reasonInUse       = "AddressesInUse"
	reasonTerminating = "Terminating"
)

// Reconcile implements reconcile.Reconciler.
func (r *subnetReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	defer r.alloc.restore.reconciled(req.Name)
	var subnet v1alpha1.Subnet
	err := r.api.Get(ctx, req.NamespacedName, &subnet)
	if apierrors.IsNotFound(err) {
		r.forget(ctx, req.Name)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read Subnet %s: %w", req.Name, err)
	}
	r.alloc.respecified(subnet.Name, subnet.Generation)
	if subnet.DeletionTimestamp != nil {
		return reconcile.Result{}, r.finalize(ctx, &subnet)
	}
	if controllerutil.AddFinalizer(&subnet, v1alpha1.SubnetFinalizer) {
		if err := r.api.Update(ctx, &subnet); err != nil {
			return reconcile.Result{}, fmt.Errorf("add the finalizer to Subnet %s: %w", subnet.Name, err)
		}
	}
	spec, cond, err := r.decide(ctx, &subnet)
	if err = errors.Join(err, r.hosts.wait(ctx)); err != nil {
		return reconcile.Result{}, err
	}
	if cond.Status == metav1.ConditionTrue {
		rows := topology.Subnet(subnet.Name, spec, dhcpOf(&subnet, r.alloc.mtu()))
		if subnet.Spec.SecondNetworksOnly {
			rows = rows.ForSecondNetworks()
		}
		changes := append(switchChanges(rows), ovn.EnsureServed(ident.SubnetSwitch(subnet.Name), ident.ServiceGroup(podNetwork)))
		changes = append(changes, r.closed(&subnet, spec.CIDRs)...)
		if err := r.nb.Apply(ctx, changes...); err != nil {
			return reconcile.Result{}, fmt.Errorf("Subnet %s: %w", subnet.Name, err)
		}
		// Only now may pods have addresses: their ports find the switch.
		err := r.alloc.setSubnet(ctx, subnet.Name, spec)
		if errors.Is(err, errTakesAway) { // cidrs and gateways cannot be changed: an earlier Subnet of the name had others, and somebody removed its finalizer
			cond = condition(metav1.ConditionFalse, reasonInUse, fmt.Sprintf("pods and VMs have addresses of an earlier Subnet of this name: %v", err))
		} else if err != nil {
			return reconcile.Result{}, fmt.Errorf("Subnet %s: %w", subnet.Name, err)
		}
	}
	return reconcile.Result{}, r.writeStatus(ctx, &subnet, cond)
}

// dhcpOf is what the guests of a Subnet are told. mtu is the smallest of all nodes, 0 if none is known.
func dhcpOf(subnet *v1alpha1.Subnet, mtu int) topology.DHCP {
	said := subnet.Spec.DHCP
	if said == nil {
		said = &v1alpha1.SubnetDHCP{}
	}
	return topology.DHCP{
		MTU: cmp.Or(subnet.Spec.MTU, mtu), Servers: parseAddrs(said.NameServers), Search: said.SearchDomains, Lease: cmp.Or(said.LeaseSeconds, v1alpha1.DefaultLease),
	}
}

// decide checks what the CRD's schema cannot: the ranges against each other and against the rest of the cluster, and then the rest of the spec. Of two Subnets that
// overlap the older one stays.
func (r *subnetReconciler) decide(ctx context.Context, subnet *v1alpha1.Subnet) (ipam.Spec, metav1.Condition, error) {
	invalid := func(message string) (ipam.Spec, metav1.Condition, error) {
		return ipam.Spec{}, condition(metav1.ConditionFalse, v1alpha1.ReasonInvalid, message), nil
	}
	cidrs, err := ipam.ParseCIDRs(subnet.Spec.CIDRs)
	if err != nil {
		return invalid(err.Error())
	}
	if overlap, err := r.overlap(ctx, subnet, cidrs); err != nil || overlap != "" {
		return ipam.Spec{}, condition(metav1.ConditionFalse, v1alpha1.ReasonOverlaps, overlap), err
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, subnet.Spec.Gateways, subnet.Spec.ExcludeIPs)
	if err != nil {
		return invalid(err.Error())
	}
	if _, err := metav1.LabelSelectorAsSelector(subnet.Spec.NamespaceSelector); err != nil {
		return invalid("namespaceSelector: " + err.Error())
	}
	for _, c := range spec.CIDRs {
		if !hasFamily(r.join.CIDRs, c) {
			return invalid(fmt.Sprintf("%s: the join network has no range of this family: start godwit-controller with --join-cidrs for it", c))
		}
	}
	return spec, condition(metav1.ConditionTrue, reasonReady, "pods get addresses from this Subnet"), nil
}

// overlap says what of the cluster has addresses in the ranges, empty if nothing has.
func (r *subnetReconciler) overlap(ctx context.Context, subnet *v1alpha1.Subnet, cidrs []netip.Prefix) (string, error) {
	if x, y, overlap := ipam.Overlap(cidrs, r.join.CIDRs); overlap {
		return fmt.Sprintf("%s overlaps the join network %s between router and nodes", x, y), nil
	}
	if !subnet.InNetwork() { // one that pods have addresses from is not taken from them for a node or a Service that came later
		for _, in := range []func(context.Context, []netip.Prefix) (string, error){r.nodeIn, r.serviceIn} {
			if what, err := in(ctx, cidrs); err != nil || what != "" {
				return what, err
			}
		}
	}
	var all v1alpha1.SubnetList
	if err := r.api.List(ctx, &all); err != nil {
		return "", fmt.Errorf("list Subnets: %w", err)
	}
	for i := range all.Items {
		other := &all.Items[i]
		if other.Name == subnet.Name || !older(other, subnet) {
			continue
		}
		theirs, err := ipam.ParseCIDRs(other.Spec.CIDRs)
		if err != nil {
			continue
		}
		if x, y, overlap := ipam.Overlap(cidrs, theirs); overlap {
			return fmt.Sprintf("%s overlaps %s of Subnet %s: delete one of the two", x, y, other.Name), nil
		}
	}
	return "", nil
}

// nodeIn says which node has an address in one of the ranges, empty if none has: the nodes would send to one another by way of the pods' network.
func (r *subnetReconciler) nodeIn(ctx context.Context, cidrs []netip.Prefix) (string, error) {
	var nodes corev1.NodeList
	if err := r.api.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("list Nodes: %w", err)
	}
	for i := range nodes.Items {
		for _, a := range nodes.Items[i].Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil {
				continue // a host name
			}
			if j := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(ip) }); j >= 0 {
				return fmt.Sprintf("%s has the address %s of Node %s in it: choose a range that no node uses", cidrs[j], ip, nodes.Items[i].Name), nil
			}
		}
	}
	return "", nil
}

// serviceIn says which Service has its ClusterIP in one of the ranges, empty if none has: in the network it would be the Subnet's, and all Services of the range would lose theirs.
func (r *subnetReconciler) serviceIn(ctx context.Context, cidrs []netip.Prefix) (string, error) {
	if !r.services {
		return "", nil
	}
	var list corev1.ServiceList
	if err := r.api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("list Services: %w", err)
	}
	for i := range list.Items {
		svc := &list.Items[i]
		for _, text := range svc.Spec.ClusterIPs {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				continue // None
			}
			if j := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(ip) }); j >= 0 {
				return fmt.Sprintf("%s has the ClusterIP %s of Service %s/%s in it: choose a range that is not of Services", cidrs[j], ip, svc.Namespace, svc.Name), nil
			}
		}
	}
	return "", nil
}

// older orders Subnets by age, then name.
func older(a, b *v1alpha1.Subnet) bool {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

func condition(status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message}
}

// finalize lets a Subnet go once no pod has an address in it.
func (r *subnetReconciler) finalize(ctx context.Context, subnet *v1alpha1.Subnet) error {
	if !slices.Contains(subnet.Finalizers, v1alpha1.SubnetFinalizer) {
		return nil
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, subnet.Spec.Gateways, nil)
	if err != nil {
		spec = ipam.Spec{} // it never was in the network: its ranges and gateways are the first that it had
	}
	used, err := r.alloc.dropSubnet(ctx, subnet.Name, spec)
	if err != nil {
		return fmt.Errorf("Subnet %s: %w", subnet.Name, err)
	}
	if used > 0 {
		return r.writeStatus(ctx, subnet, condition(metav1.ConditionFalse, reasonTerminating,
			fmt.Sprintf("%d pods and VMs still have addresses in this Subnet: it is deleted when they are gone", used)))
	}
	if err := r.nb.Apply(ctx, subnetRemoval(subnet.Name)...); err != nil {
		return fmt.Errorf("Subnet %s: %w", subnet.Name, err)
	}
	controllerutil.RemoveFinalizer(subnet, v1alpha1.SubnetFinalizer)
	if err := r.api.Update(ctx, subnet); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer of Subnet %s: %w", subnet.Name, err)
	}
	r.log.Info("Subnet deleted", "subnet", subnet.Name)
	return nil
}

// forget sees to what is left of a Subnet that is gone, and looks again at those that were refused: it may have been in their way. Its rows the finalizer saw to.
func (r *subnetReconciler) forget(ctx context.Context, name string) {
	r.alloc.forgetSubnet(name)
	for _, again := range r.refused(ctx) {
		r.queues.subnets.enqueue(again.NamespacedName)
	}
}

// refused are the Subnets that are not in the network, perhaps for something that has changed.
func (r *subnetReconciler) refused(ctx context.Context) []reconcile.Request {
	var all v1alpha1.SubnetList
	if err := r.api.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		r.log.Error("the Subnets that were refused cannot be found", "error", err)
	}
	var out []reconcile.Request
	for i := range all.Items {
		if meta.IsStatusConditionFalse(all.Items[i].Status.Conditions, v1alpha1.ConditionReady) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
		}
	}
	return out
}

// afterNode maps a node that has gone, or has other addresses, to the Subnets that it may have been in the way of.
func (r *subnetReconciler) afterNode(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.refused(ctx)
}

func subnetRemoval(name string) []ovn.Change {
	ls := ident.SubnetSwitch(name)
	return []ovn.Change{ovn.DeletePolicies(ident.OwnerSubnet, name), ovn.DeleteDHCP(ident.OwnerSubnet, name), ovn.DeleteRouterPort(ident.RouterPort(ls)), ovn.DeleteSwitch(ls)}
}

// setCondition sets a condition as of a generation, and says whether it is another than before.
func setCondition(all *[]metav1.Condition, cond metav1.Condition, generation int64) bool {
	cond.ObservedGeneration = generation
	return meta.SetStatusCondition(all, cond)
}

func (r *subnetReconciler) writeStatus(ctx context.Context, subnet *v1alpha1.Subnet, cond metav1.Condition) error {
	before := subnet.DeepCopy()
	turned := setCondition(&subnet.Status.Conditions, cond, subnet.Generation)
	moved := r.egress.get(subnet.Name).write(&subnet.Status, subnet.Generation)
	subnet.Status.UsedIPs, subnet.Status.AvailableIPs = r.alloc.usage(subnet.Name)
	if !turned && !moved && before.Status.EgressNode == subnet.Status.EgressNode && before.Status.UsedIPs == subnet.Status.UsedIPs && before.Status.AvailableIPs == subnet.Status.AvailableIPs {
		return nil
	}
	if err := r.api.Status().Patch(ctx, subnet, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of Subnet %s: %w", subnet.Name, err)
	}
	if turned {
		r.log.Info("Subnet condition", "subnet", subnet.Name, "ready", cond.Status, "reason", cond.Reason, "message", cond.Message)
	}
	return nil
}

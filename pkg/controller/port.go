package controller

// Port reconciler.
// In:   Ports, Subnets (their ranges are nobody's allowedAddresses), Namespaces (labels), VMIs (their NIC's MAC, whether they run), VirtualMachines (uid), the northbound row's options and its southbound chassis (for the phase).
// Out:  the Port's finalizer, owners and status, an event of the VMI that says what is in the way; LogicalSwitchPort vm/NAMESPACE/VM/NETWORK: addresses, port_security, dhcpv4_options, dhcpv6_options, external_ids godwit.dev/{owner,
//       namespace,name,uid,subnet}. Its options are written when the row is made, so that nobody can claim it; from then on they are vm.go's.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// Reasons of a Port's condition Ready, besides those of Subnets. The first two are also those of a pod's events.
const (
	reasonSubnetFull  = "SubnetFull"
	reasonNoSubnet    = "SubnetNotReady"
	reasonIPTaken     = "AddressTaken"
	reasonIPRange     = "AddressOutOfRange"
	reasonMACTaken    = "MACTaken"
	reasonMACReserved = "MACReserved"
	reasonNotOpen     = "SubnetNotAllowed"
)

type portReconciler struct {
	api      client.Client
	nb       *ovn.NB
	sb       *ovn.SB
	alloc    *allocations
	policies *policies
	anchors  *anchors
	queues   *queues
	virt     *kubevirt
	place    subnetChoice
	events   events.EventRecorder
	log      *slog.Logger
}

// Reconcile implements reconcile.Reconciler.
func (r *portReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.alloc.restore.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
	}
	var port v1alpha1.Port
	err := r.api.Get(ctx, req.NamespacedName, &port)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.lost(ctx, req.NamespacedName)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read Port %s: %w", req.NamespacedName, err)
	}
	if was := r.alloc.uidOf(portHolder(req.NamespacedName)); was != "" && was != port.UID { // another of this name went, and was not finalized
		if err := r.vacate(ctx, req.NamespacedName, was, ""); err != nil {
			return reconcile.Result{}, fmt.Errorf("Port %s, another than before: %w", req.NamespacedName, err)
		}
	}
	vm := vmKey(&port)
	vmi, err := r.virt.vmi(ctx, r.api, vm)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.leave(ctx, &port); err != nil {
		return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
	}
	if port.DeletionTimestamp != nil {
		taken, err := r.first(ctx, &port)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
		}
		if taken.Type != "" || !carries(vmi, &port) { // another Port is the VM's
			return reconcile.Result{}, r.finalize(ctx, &port)
		}
	} else {
		holder, err := r.holder(ctx, &port, vmi)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
		}
		kept, owned := controllerutil.AddFinalizer(&port, v1alpha1.PortFinalizer), own(&port, holder)
		if kept || owned {
			if err := r.api.Update(ctx, &port); err != nil {
				return reconcile.Result{}, fmt.Errorf("write the finalizer and the owners of Port %s: %w", req.NamespacedName, err)
			}
		}
	}
	next := port.Status
	cond, err := r.ensure(ctx, &port, vmi, &next)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
	}
	r.virt.enqueue(vm) // its launchers may wait for the addresses or for the row
	if uses(vmi, &port) && cond.Status == metav1.ConditionFalse {
		r.events.Eventf(vmi, &port, corev1.EventTypeWarning, cond.Reason, "AttachPort", "Port %s: %s", port.Name, cond.Message)
	}
	return reconcile.Result{}, r.writeStatus(ctx, &port, next, cond)
}

// holder is whose VM a Port may go with: the VM's instance, or the one that it would have if it was started now; nil if there is neither.
func (r *portReconciler) holder(ctx context.Context, port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) (*kubevirtv1.VirtualMachineInstance, error) {
	if vmi != nil || port.Spec.ReclaimPolicy != v1alpha1.ReclaimDelete {
		return vmi, nil
	}
	return r.virt.declared(ctx, r.api, vmKey(port))
}

// vmKey names the VM, or the VMI, that a Port is for.
func vmKey(port *v1alpha1.Port) types.NamespacedName {
	return types.NamespacedName{Namespace: port.Namespace, Name: port.Spec.Target.Name}
}

func rowName(port *v1alpha1.Port) ident.PortName {
	return ident.VMPort(port.Namespace, port.Spec.Target.Name, port.Spec.Target.Network)
}

// ensure gives a Port its addresses and its row, and says in next what it has.
func (r *portReconciler) ensure(ctx context.Context, port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, next *v1alpha1.PortStatus) (metav1.Condition, error) {
	if cond, err := r.first(ctx, port); err != nil || cond.Type != "" {
		return cond, err
	}
	subnet, ips, cond, err := r.allocate(ctx, port)
	if err != nil || cond.Type != "" {
		return cond, err
	}
	mac, cond := r.decideMAC(port, vmi, subnet, ips)
	if cond.Type != "" {
		return cond, nil
	}
	next.Subnet, next.MAC, next.IPs = subnet, mac.String(), nil
	for _, ip := range ips {
		next.IPs = append(next.IPs, ip.Addr().String())
	}
	v4, v6, err := r.nb.DHCP(ctx, ident.OwnerSubnet, subnet)
	if err != nil {
		return metav1.Condition{}, err
	}
	allowed, err := r.allowed(ctx, port, next)
	if err != nil {
		return metav1.Condition{}, err
	}
	want := topology.VMPort{
		Namespace: port.Namespace, Name: port.Spec.Target.Name, Network: port.Spec.Target.Network, UID: string(port.UID), Subnet: subnet,
		MAC: mac, IPs: ips, Allowed: allowed, Security: port.Spec.PortSecurity, DHCPv6: v6,
	}
	if uses(vmi, port) && pluginBound(vmi, port.Spec.Target.Network) {
		want.DHCPv4 = v4
	}
	r.policies.setVM(port, vmi, addrsOf(ips))
	row, err := r.ensureRow(ctx, port, want)
	if err != nil {
		return metav1.Condition{}, err
	}
	r.alloc.keepMAC(portHolder(client.ObjectKeyFromObject(port)), subnet, mac)
	where, err := r.locate(ctx, row)
	if err != nil {
		return metav1.Condition{}, err
	}
	where.inUse = inUse(vmi, port)
	next.Phase, next.Node = where.phase(next.Phase)
	next.EgressNode = row.anchor(next.EgressNode)
	if port.DeletionTimestamp != nil {
		return condition(metav1.ConditionTrue, reasonTerminating, "the VM still uses the Port: it is deleted when the VM has stopped"), nil
	}
	return condition(metav1.ConditionTrue, reasonReady, "the port has its addresses and is in the network"), nil
}

// allocate gives a Port its addresses. A condition says what is in the way; what it waits for enqueues the Port again.
func (r *portReconciler) allocate(ctx context.Context, port *v1alpha1.Port) (string, []netip.Prefix, metav1.Condition, error) {
	var none metav1.Condition
	ask := request{had: parseAddrs(port.Status.IPs), wanted: parseAddrs(port.Spec.IPs), turn: r.alloc.turn()}
	subnet := port.Status.Subnet
	if subnet == "" {
		subnet = port.Spec.Subnet
	}
	if asked := port.Spec.Subnet; port.Status.Subnet == "" && (asked == "" || port.Annotations[v1alpha1.SubnetAnnotation] == asked) {
		var err error
		if subnet, err = r.place.on(port.Spec.Target.Network).wished(ctx, port.Namespace, asked); errors.Is(err, errNotOpen) {
			r.alloc.await(portHolder(client.ObjectKeyFromObject(port)), subnet, ask.turn)
			return "", nil, condition(metav1.ConditionFalse, reasonNotOpen, err.Error()), nil
		}
		if err != nil {
			return "", nil, none, err
		}
	}
	subnet, ips, err := r.alloc.take(portHolder(client.ObjectKeyFromObject(port)), port.UID, subnet, ask)
	for sentinel, reason := range map[error]string{
		errNoSubnet: reasonNoSubnet, ipam.ErrFull: reasonSubnetFull, ipam.ErrTaken: reasonIPTaken, ipam.ErrOutOfRange: reasonIPRange,
	} {
		if errors.Is(err, sentinel) {
			return "", nil, condition(metav1.ConditionFalse, reason, err.Error()), nil
		}
	}
	return subnet, ips, none, err
}

// ensureRow writes the row but for its options. That of an earlier Port for the same interface is replaced whole.
func (r *portReconciler) ensureRow(ctx context.Context, port *v1alpha1.Port, want topology.VMPort) (portRow, error) {
	row := portRow{name: rowName(port), options: topology.Unclaimed()}
	have, err := r.nb.Port(ctx, row.name)
	if err != nil {
		return row, err
	}
	if have != nil && have.ExternalIDs[ident.KeyUID] != want.UID {
		r.anchors.forget(row.name)
		if err := r.nb.Apply(ctx, ovn.DeletePort(row.name), r.anchors.pending()); err != nil {
			return row, fmt.Errorf("delete the row of an earlier Port: %w", err)
		}
		have = nil
	}
	lsp := topology.VM(want)
	if have == nil {
		lsp.Options = row.options
	} else {
		row.options, row.egress = have.Options, have.ExternalIDs[ident.KeyEgressNode]
	}
	return row, r.nb.Apply(ctx, ovn.EnsurePort(ident.SubnetSwitch(want.Subnet), lsp), r.policies.pending())
}

// portRow is a LogicalSwitchPort by name, with what the VM's reconciler has written.
type portRow struct {
	name    ident.PortName
	options map[string]string
	// egress is the VM's anchor, empty if it has none.
	egress string
}

// anchor is the VM's by its row. One that the VM's reconciler has not written yet was lost with its database, or is new: the Port knows the anchor until the row does.
func (r portRow) anchor(known string) string {
	if r.options[ident.OptionIfaceIDVer] == "" {
		return known
	}
	return r.egress
}

// finalize lets a Port go that no VM uses.
func (r *portReconciler) finalize(ctx context.Context, port *v1alpha1.Port) error {
	if !slices.Contains(port.Finalizers, v1alpha1.PortFinalizer) {
		return nil
	}
	key := client.ObjectKeyFromObject(port)
	have, err := r.nb.Port(ctx, rowName(port))
	if err != nil {
		return err
	}
	r.policies.forgetVM(rowName(port), port.UID) // it may have been told before there could be a row
	changes := []ovn.Change{r.policies.pending()}
	if holds(port, have) {
		r.anchors.forget(rowName(port))
		changes = append(changes, ovn.DeletePort(rowName(port)), r.anchors.pending())
	}
	if err := r.nb.Apply(ctx, changes...); err != nil {
		return fmt.Errorf("Port %s: %w", key, err)
	}
	r.alloc.release(portHolder(key)) // after the row is gone: nobody else gets an address that a port still has
	controllerutil.RemoveFinalizer(port, v1alpha1.PortFinalizer)
	if err := r.api.Update(ctx, port); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer of Port %s: %w", key, err)
	}
	r.virt.enqueue(vmKey(port)) // another VM of the name may wait for its own Port
	if err := r.retryOthers(ctx); err != nil {
		return err
	}
	r.log.Info("Port deleted", "port", key, "vm", port.Spec.Target.Name, "ips", strings.Join(port.Status.IPs, " "))
	return nil
}

// retryOthers looks again at the Ports that could not have what they ask for: it may have been given back.
func (r *portReconciler) retryOthers(ctx context.Context) error {
	var all v1alpha1.PortList
	if err := r.api.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Ports that wait: %w", err)
	}
	for i := range all.Items {
		if meta.IsStatusConditionFalse(all.Items[i].Status.Conditions, v1alpha1.ConditionReady) {
			r.queues.ports.enqueue(client.ObjectKeyFromObject(&all.Items[i]))
		}
	}
	return nil
}

func (r *portReconciler) writeStatus(ctx context.Context, port *v1alpha1.Port, next v1alpha1.PortStatus, cond metav1.Condition) error {
	before := port.DeepCopy()
	cond.ObservedGeneration = port.Generation
	next.Conditions = slices.Clone(next.Conditions)
	turned := meta.SetStatusCondition(&next.Conditions, cond)
	if equality.Semantic.DeepEqual(before.Status, next) {
		return nil
	}
	port.Status = next
	if err := r.api.Status().Patch(ctx, port, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of Port %s/%s: %w", port.Namespace, port.Name, err)
	}
	key := client.ObjectKeyFromObject(port)
	if turned {
		r.log.Info("Port condition", "port", key, "ready", cond.Status, "reason", cond.Reason, "message", cond.Message)
	}
	if before.Status.Phase != next.Phase || before.Status.Node != next.Node {
		r.log.Info("Port", "port", key, "phase", next.Phase, "was", before.Status.Phase, "node", next.Node, "egress", next.EgressNode)
	}
	return nil
}

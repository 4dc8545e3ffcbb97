package controller

// Pod reconciler.
// In:   Pods that are no VM's launchers, Namespaces (labels), Subnets (selectors, MTU, gateways), the smallest MTU of all nodes.
// Out:  annotation godwit.dev/identity of the Pod; LogicalSwitchPort pod/NAMESPACE/NAME/default: addresses, port_security, options:requested-chassis,
//       options:iface-id-ver, external_ids godwit.dev/{owner,namespace,name,uid,subnet}; QoS rows of the pod's bandwidth annotations.
// The identity is written when the pod is created, the row when its node is known.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

type podReconciler struct {
	api      client.Client
	nb       *ovn.NB
	alloc    *allocations
	policies *policies
	place    subnetChoice
	virt     *kubevirt
	events   events.EventRecorder
	log      *slog.Logger
}

// Reconcile implements reconcile.Reconciler.
func (r *podReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.alloc.restore.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("pod %s: %w", req.NamespacedName, err)
	}
	var pod corev1.Pod
	err := r.api.Get(ctx, req.NamespacedName, &pod)
	if apierrors.IsNotFound(err) || err == nil && !networked(&pod) {
		return reconcile.Result{}, r.forget(ctx, req.NamespacedName)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read pod %s: %w", req.NamespacedName, err)
	}
	ofVM, err := r.virt.carries(ctx, r.api, &pod)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("pod %s: %w", req.NamespacedName, err)
	}
	if ofVM {
		return reconcile.Result{}, nil // vm.go's: the interface is the VM's
	}
	if err := r.removePredecessor(ctx, &pod); err != nil {
		return reconcile.Result{}, err
	}
	id, err := r.decide(ctx, &pod)
	if errors.Is(err, errWaiting) {
		return reconcile.Result{}, nil // enqueued again by whatever it waits for
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return writeIdentity(gctx, r.api, &pod, id) })
	g.Go(func() error { return r.ensureRow(gctx, &pod, id) })
	return reconcile.Result{}, g.Wait()
}

// networked says whether a pod needs a port: it is not on its node's own network, and it may still run.
func networked(pod *corev1.Pod) bool {
	return !pod.Spec.HostNetwork && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// errWaiting: the pod cannot be served now; an event on it says why, and what it waits for enqueues it again.
var errWaiting = errors.New("waiting")

// decide finds out what the pod's identity is, allocating its addresses when it has none.
func (r *podReconciler) decide(ctx context.Context, pod *corev1.Pod) (v1alpha1.Identity, error) {
	key := client.ObjectKeyFromObject(pod)
	var has []netip.Addr
	current, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err == nil && current.PodUID == string(pod.UID) {
		has = addrsOf(current.IPs)
	}
	ask := request{had: has, turn: r.alloc.turn()}
	subnets, err := r.place.subnets(ctx)
	if err != nil {
		return v1alpha1.Identity{}, err
	}
	name := current.Subnet
	if has == nil {
		if name, err = r.place.choose(ctx, pod.Namespace, subnets); err != nil {
			return v1alpha1.Identity{}, err
		}
	}
	subnet, ips, err := r.alloc.take(podHolder(key), pod.UID, name, ask)
	if errors.Is(err, ipam.ErrFull) {
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, reasonSubnetFull, "AllocateAddress",
			"%v: the pod gets its address when one is freed; enlarge the range with another Subnet or delete pods", err)
		return v1alpha1.Identity{}, errWaiting
	}
	if errors.Is(err, errNoSubnet) {
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, reasonNoSubnet, "AllocateAddress",
			"%v: see the conditions of `kubectl get subnet %s -o yaml`", err, name)
		return v1alpha1.Identity{}, errWaiting
	}
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("pod %s: %w", key, err)
	}
	if has != nil && !slices.Equal(has, addrsOf(ips)) && pod.Status.PodIP != "" {
		r.log.Warn("a pod that runs gets another address", "pod", key, "had", has, "gets", ips)
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, "AddressChanged", "AllocateAddress",
			"another has %v, the pod gets %v: its interface still has the old address; delete the pod", has, ips)
	}
	return r.identity(pod, current, subnets[subnet], ips)
}

func (r *podReconciler) identity(pod *corev1.Pod, current v1alpha1.Identity, subnet *v1alpha1.Subnet, ips []netip.Prefix) (v1alpha1.Identity, error) {
	if subnet == nil { // deleted between the allocation and now; its reconciler waits for this pod
		return v1alpha1.Identity{}, errWaiting
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, subnet.Spec.Gateways, nil) // what is excluded is no part of an identity
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("Subnet %s: %w", subnet.Name, err)
	}
	id := v1alpha1.Identity{
		PodUID: string(pod.UID), Subnet: subnet.Name, IPs: ips, Gateways: spec.Gateways,
		MAC: v1alpha1.MAC(ident.MAC(ips[0].Addr())), MTU: subnet.Spec.MTU,
	}
	if id.MTU == 0 {
		id.MTU = r.alloc.mtu()
	}
	// A pod that is attached keeps its MTU: it would not notice another.
	if attached := pod.Status.PodIP != ""; attached && current.PodUID == id.PodUID && current.MTU != 0 {
		id.MTU = current.MTU
	}
	if id.MTU == 0 {
		return v1alpha1.Identity{}, errWaiting // no node has an agent yet; the first that publishes its MTU enqueues every pod
	}
	return id, nil
}

// removePredecessor deletes the row of an earlier pod of the same name, which may be on another switch. It comes before the allocation, which frees that pod's
// address: the new pod may have no node, and so no row, for a long time, and nobody else gets an address that a port still has.
func (r *podReconciler) removePredecessor(ctx context.Context, pod *corev1.Pod) error {
	have, err := r.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, podNetwork))
	if err != nil || have == nil || have.ExternalIDs[ident.KeyUID] == string(pod.UID) {
		return err
	}
	if err := r.remove(ctx, client.ObjectKeyFromObject(pod)); err != nil {
		return fmt.Errorf("pod %s/%s: delete the port of its predecessor: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// ensureRow writes the pod's row once its node is known.
func (r *podReconciler) ensureRow(ctx context.Context, pod *corev1.Pod, id v1alpha1.Identity) error {
	if pod.Spec.NodeName == "" {
		return nil
	}
	ls := ident.SubnetSwitch(id.Subnet)
	lsp := topology.Pod(pod.Namespace, pod.Name, podNetwork, ident.ChassisName(pod.Spec.NodeName), id)
	limits, err := topology.PodBandwidth(pod.Namespace, pod.Name, podNetwork, pod.Annotations)
	if err != nil { // the pod runs without limits rather than not at all
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, "BadBandwidth", "LimitBandwidth", "%v: the pod has no bandwidth limit", err)
	}
	r.policies.setPod(pod, id)
	if err := r.nb.Apply(ctx, ovn.EnsurePort(ls, lsp), ovn.SetPodQoS(ls, pod.Namespace, pod.Name, limits), r.policies.pending()); err != nil {
		return fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// forget frees what a pod had that is gone, finished, or needs nothing.
func (r *podReconciler) forget(ctx context.Context, key types.NamespacedName) error {
	if err := r.remove(ctx, key); err != nil {
		return fmt.Errorf("pod %s: %w", key, err)
	}
	r.alloc.release(podHolder(key)) // after the rows are gone: nobody else gets an address that a port or a policy still has
	return nil
}

// remove takes a pod's rows away, and its addresses out of those of policies.
func (r *podReconciler) remove(ctx context.Context, key types.NamespacedName) error {
	r.policies.deletePod(key)
	return r.nb.Apply(ctx, ovn.DeletePort(ident.PodPort(key.Namespace, key.Name, podNetwork)), ovn.SetPodQoS("", key.Namespace, key.Name, nil), r.policies.pending())
}

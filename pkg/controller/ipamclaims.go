package controller

// IPAMClaim reconciler: the addresses of a pod's interface on a second network that it has by an IPAMClaim stay the claim's when the pod goes, and are released with the claim.
// In:   IPAMClaims (k8s.cni.cncf.io/v1alpha1, status.ips), if the cluster has them; the pods that refer to them; Subnets, Namespaces (labels).
// Out:  status.ips and status.ownerPod of an IPAMClaim that has none; an event of one whose addresses cannot be kept.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// claimKind is IPAMClaim. Few fields of it are read and written, and so it has no Go type here.
var claimKind = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1alpha1", Kind: "IPAMClaim"}

const (
	claimDefinition = "ipamclaims.k8s.cni.cncf.io"
	// reasonNoClaim: a pod refers to an IPAMClaim that is not there.
	reasonNoClaim = "IPAMClaimMissing"
)

// ipamClaims are the IPAMClaims of the cluster, if it has their definition.
type ipamClaims struct {
	arrival
	api    client.Client
	alloc  *allocations
	queues *queues
	events events.EventRecorder
	// ready: IPAMClaims can be read.
	ready atomic.Bool
}

func newIPAMClaims(p parts, place subnetChoice, events events.EventRecorder) *ipamClaims {
	c := &ipamClaims{
		api: p.mgr.GetClient(), alloc: p.alloc, queues: p.queues, events: events,
		arrival: arrival{mgr: p.mgr, log: p.Logger, what: "IPAMClaim", means: "pods' addresses on second networks can outlive them", definitions: []string{claimDefinition}, kinds: []schema.GroupVersionKind{claimKind}},
	}
	c.start = c.watch
	p.alloc.claims.list = c.list
	p.alloc.claims.may = func(ctx context.Context, namespace, subnet string) bool {
		_, err := place.on("second").allowed(ctx, namespace, subnet)
		return err == nil
	}
	return c
}

// watch reads the IPAMClaims and lets them be reconciled.
func (c *ipamClaims) watch(ctx context.Context) error {
	kind := newClaim(types.NamespacedName{})
	if _, err := c.mgr.GetCache().GetInformer(ctx, kind); err != nil {
		return fmt.Errorf("watch IPAMClaims: %w", err)
	}
	c.ready.Store(true)
	return ctrl.NewControllerManagedBy(c.mgr).Named("ipamclaim").For(kind).
		Watches(&v1alpha1.Subnet{}, handler.EnqueueRequestsFromMapFunc(c.having), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(options(1)).Complete(c)
}

// having asks for the IPAMClaims that have addresses of a Subnet's ranges: if it is changed, it may be for their namespaces now.
func (c *ipamClaims) having(ctx context.Context, o client.Object) []reconcile.Request {
	subnet, ok := o.(*v1alpha1.Subnet)
	if !ok {
		return nil
	}
	cidrs, _ := ipam.ParseCIDRs(subnet.Spec.CIDRs) // its own reconciler tells what is wrong
	all, err := c.list(ctx)
	if err != nil {
		c.log.Error("the IPAMClaims that have addresses cannot be found", "error", err)
	}
	var out []reconcile.Request
	for i := range all {
		if within(all[i].ips, ipam.Spec{CIDRs: cidrs}) {
			out = append(out, reconcile.Request{NamespacedName: all[i].key})
		}
	}
	return out
}

// newClaim is an IPAMClaim of which nothing but the name is known.
func newClaim(key types.NamespacedName) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(claimKind)
	u.SetNamespace(key.Namespace)
	u.SetName(key.Name)
	return u
}

// Reconcile implements reconcile.Reconciler.
func (c *ipamClaims) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := c.alloc.restore.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("IPAMClaim %s: %w", req.NamespacedName, err)
	}
	obj, err := c.get(ctx, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, err
	}
	if obj == nil {
		c.alloc.dropClaim(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	claim, err := parseClaim(obj)
	if err == nil && len(claim.ips) > 0 {
		err = c.alloc.setClaim(ctx, claim)
	}
	if err != nil {
		c.events.Eventf(obj, nil, corev1.EventTypeWarning, reasonIPTaken, "KeepAddress", "its addresses are not kept for it: %v", err)
	}
	return reconcile.Result{}, c.wake(ctx, req.NamespacedName)
}

// wake lets the pods be looked at that refer to an IPAMClaim.
func (c *ipamClaims) wake(ctx context.Context, key types.NamespacedName) error {
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(key.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the pods of IPAMClaim %s: %w", key, err)
	}
	for i := range pods.Items {
		if slices.ContainsFunc(selections(&pods.Items[i]), func(s nad.Selection) bool { return s.Claim == key.Name }) {
			c.queues.pods.enqueue(client.ObjectKeyFromObject(&pods.Items[i]))
		}
	}
	return nil
}

// get is an IPAMClaim, nil if there is none. It must not be changed.
func (c *ipamClaims) get(ctx context.Context, key types.NamespacedName) (*unstructured.Unstructured, error) {
	if !c.ready.Load() {
		return nil, nil
	}
	obj := newClaim(key)
	err := c.mgr.GetCache().Get(ctx, key, obj, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read IPAMClaim %s: %w", key, err)
	}
	return obj, nil
}

// list are the IPAMClaims that have addresses, the oldest first. One that cannot be read has none.
func (c *ipamClaims) list(ctx context.Context) ([]ipamClaim, error) {
	if !c.ready.Load() {
		return nil, nil
	}
	all := &unstructured.UnstructuredList{}
	all.SetGroupVersionKind(claimKind.GroupVersion().WithKind(claimKind.Kind + "List"))
	if err := c.mgr.GetCache().List(ctx, all, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list IPAMClaims: %w", err)
	}
	slices.SortStableFunc(all.Items, func(x, y unstructured.Unstructured) int {
		return x.GetCreationTimestamp().Compare(y.GetCreationTimestamp().Time)
	})
	var out []ipamClaim
	for i := range all.Items {
		if claim, err := parseClaim(&all.Items[i]); err == nil && len(claim.ips) > 0 {
			out = append(out, claim)
		}
	}
	return out, nil
}

// parseClaim reads status.ips, which are written with their prefix lengths.
func parseClaim(obj *unstructured.Unstructured) (ipamClaim, error) {
	claim := ipamClaim{key: client.ObjectKeyFromObject(obj), uid: obj.GetUID()}
	texts, _, err := unstructured.NestedStringSlice(obj.Object, "status", "ips")
	if err != nil {
		return claim, fmt.Errorf("status.ips: %w", err)
	}
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if p, bad := netip.ParsePrefix(text); bad == nil {
			ip, err = p.Addr(), nil
		}
		if err != nil {
			return claim, fmt.Errorf("status.ips: %q is no address", text)
		}
		claim.ips = append(claim.ips, ip)
	}
	return claim, nil
}

// selections are a pod's second networks, none if what it says of them cannot be read.
func selections(pod *corev1.Pod) []nad.Selection {
	all, err := nad.ParseSelections(pod.Annotations[nad.Annotation], pod.Namespace)
	if err != nil {
		return nil
	}
	return all
}

// claimOf names the IPAMClaim by which a pod's link has its addresses, the zero value if it has its own.
func claimOf(pod *corev1.Pod, link string) types.NamespacedName {
	for _, s := range selections(pod) {
		if s.Interface == link && s.Claim != "" {
			return types.NamespacedName{Namespace: pod.Namespace, Name: s.Claim}
		}
	}
	return types.NamespacedName{}
}

// decideByClaim finds out what a pod's interface is that may have its addresses by an IPAMClaim: those that the claim has, or, of a new one, any, which are the claim's then.
func (r *podReconciler) decideByClaim(ctx context.Context, pod *corev1.Pod, name string, n nicRequest) (v1alpha1.Identity, error) {
	if name == "" {
		return r.decideOne(ctx, pod, n)
	}
	key := types.NamespacedName{Namespace: pod.Namespace, Name: name}
	obj, err := r.byClaim.get(ctx, key)
	if err != nil {
		return v1alpha1.Identity{}, err
	}
	if obj == nil {
		return v1alpha1.Identity{}, r.refuse(pod, n, reasonNoClaim, fmt.Sprintf("there is no IPAMClaim %s, to which ipam-claim-reference refers: the interface is made when it is there", key))
	}
	claim, err := parseClaim(obj)
	if err != nil {
		return v1alpha1.Identity{}, r.refuse(pod, n, v1alpha1.ReasonInvalid, fmt.Sprintf("IPAMClaim %s: %v", key, err))
	}
	if known, ok := r.alloc.claimed(key); ok && known.uid == claim.uid {
		claim = known
	}
	if len(claim.ips) > 0 {
		n.wishes.ips, n.wishes.claim = nil, name
		for _, ip := range claim.ips {
			n.wishes.ips = append(n.wishes.ips, ip.String())
		}
	}
	n.claim = claim
	id, err := r.decideOne(ctx, pod, n)
	if err != nil || r.alloc.hasBy(n.holder) != key {
		return id, err // a pod that has others keeps them
	}
	return id, r.byClaim.record(ctx, obj, pod, id.IPs)
}

// record writes what an IPAMClaim has got.
func (c *ipamClaims) record(ctx context.Context, obj *unstructured.Unstructured, pod *corev1.Pod, ips []netip.Prefix) error {
	if has, _, err := unstructured.NestedStringSlice(obj.Object, "status", "ips"); err == nil && len(has) > 0 {
		return nil
	}
	var texts []any
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	next := obj.DeepCopy()
	status, _, _ := unstructured.NestedMap(next.Object, "status")
	if status == nil {
		status = map[string]any{}
	}
	status["ips"], status["ownerPod"] = texts, map[string]any{"name": pod.Name}
	next.Object["status"] = status
	if err := c.api.Status().Patch(ctx, next, client.MergeFrom(obj)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the addresses of IPAMClaim %s/%s: %w", obj.GetNamespace(), obj.GetName(), err)
	}
	c.log.Info("IPAMClaim has addresses", "claim", obj.GetNamespace()+"/"+obj.GetName(), "pod", pod.Name, "ips", ips)
	return nil
}

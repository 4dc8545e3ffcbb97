package controller

// Node reconciler.
// In:   Nodes (existence, annotation godwit.dev/mtu, status.addresses, whether they are ready).
// Out:  annotation godwit.dev/join of the Node; LogicalSwitchPort node/NAME on the join switch: addresses, options:requested-chassis, external_ids godwit.dev/{owner,name};
//       LogicalRouterPolicies through the node, three per family (topology.Node). SB Chassis and Chassis_Private of a node that was deleted: the rows themselves. In the same transactions what it tells egress_anchor.go, egress_hosts.go and policies.go.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/pkg/topology"
)

type nodeReconciler struct {
	api      client.Client
	nb       *ovn.NB
	sb       *ovn.SB
	alloc    *allocations
	policies *policies
	anchors  *anchors
	hosts    *hosts
	events   events.EventRecorder
	log      *slog.Logger

	mu sync.Mutex
	// gone is when the chassis of nodes that were deleted was last there. A node is forgotten for other reasons too meanwhile.
	gone map[string]time.Time
}

// Reconcile implements reconcile.Reconciler.
func (r *nodeReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.alloc.restoreJoin(ctx); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.policies.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("node %s: %w", req.Name, err)
	}
	var node corev1.Node
	err := r.api.Get(ctx, req.NamespacedName, &node)
	if apierrors.IsNotFound(err) {
		return r.forget(ctx, req.Name)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read node %s: %w", req.Name, err)
	}
	r.returned(req.Name)
	if node.Name == string(ident.NoChassis) {
		r.events.Eventf(&node, nil, corev1.EventTypeWarning, "NameReserved", "JoinNetwork",
			"the name %s stands for no chassis at all: this node gets no pod network; register it under another name", node.Name)
		return reconcile.Result{}, nil
	}
	has, err := v1alpha1.ParseJoin(node.Annotations[v1alpha1.JoinAnnotation])
	if err != nil {
		has = v1alpha1.Join{} // it joins as a new one
	}
	join, full := r.alloc.joinNode(node.Name, has)
	if full != nil {
		full = fmt.Errorf("node %s: %w", node.Name, full)
		r.events.Eventf(&node, nil, corev1.EventTypeWarning, "JoinNetworkFull", "JoinNetwork", "%v: every node needs two addresses of each family; install with larger join CIDRs", full)
	}
	if len(join.IPs) == 0 {
		return reconcile.Result{}, full
	}
	r.observeMTU(&node)
	r.policies.setNode(&node, join)
	left := r.anchors.observe(&node)
	r.hosts.setNode(&node)
	changes := append(r.anchors.nodeChanges(node.Name), nodeChanges(node.Name, join)...)
	if err := r.nb.Apply(ctx, append(changes, r.hosts.pending(), r.policies.pending())...); err != nil {
		return reconcile.Result{}, fmt.Errorf("node %s: %w", node.Name, err)
	}
	return reconcile.Result{RequeueAfter: left}, errors.Join(r.annotate(ctx, &node, join), full)
}

func nodeChanges(node string, join v1alpha1.Join) []ovn.Change {
	rows := topology.Node(node, join)
	changes := []ovn.Change{ovn.EnsurePort(ident.JoinSwitch(podNetwork), rows.Port)}
	for _, p := range rows.Egress {
		changes = append(changes, ovn.EnsurePolicy(ident.Router(podNetwork), p))
	}
	return changes
}

func (r *nodeReconciler) observeMTU(node *corev1.Node) {
	text, ok := node.Annotations[v1alpha1.MTUAnnotation]
	if !ok {
		return // its agent has not started yet
	}
	mtu, ok := parseMTU(text)
	if !ok {
		r.events.Eventf(node, nil, corev1.EventTypeWarning, "BadMTU", "JoinNetwork",
			"annotation %s is %q, want bytes between %d and %d: ignored; delete the annotation and restart the node's godwit-agent",
			v1alpha1.MTUAnnotation, text, v1alpha1.MinMTU, v1alpha1.MaxMTU)
		return
	}
	if r.alloc.setNodeMTU(node.Name, mtu) {
		r.log.Info("smallest MTU of all nodes changed", "mtu", r.alloc.mtu(), "node", node.Name)
		r.alloc.wakeAll()
	}
}

// parseMTU reads the value of MTUAnnotation in bytes.
func parseMTU(text string) (mtu int, ok bool) {
	mtu, err := strconv.Atoi(text)
	return mtu, err == nil && v1alpha1.MTUInBounds(mtu)
}

func (r *nodeReconciler) annotate(ctx context.Context, node *corev1.Node, join v1alpha1.Join) error {
	text := join.Text()
	if node.Annotations[v1alpha1.JoinAnnotation] == text {
		return nil
	}
	if err := annotate(ctx, r.api, node, corev1.SchemeGroupVersion.WithKind("Node"), v1alpha1.JoinAnnotation, text); err != nil {
		return fmt.Errorf("annotate node %s with its place on the join network: %w", node.Name, err)
	}
	r.log.Info("node joined", "node", node.Name, "ips", join.IPs, "clients", join.Clients)
	return nil
}

// chassisReturn is when to look again for the chassis of a node that was deleted: an ovn-controller that runs there still makes its rows anew.
const chassisReturn = time.Minute

// forget takes a node out of the network that was deleted. Its port goes when its chassis has stayed away: by it the garbage collector finds a node whose end, or whose chassis' return,
// no earlier process has seen.
func (r *nodeReconciler) forget(ctx context.Context, node string) (reconcile.Result, error) {
	var result reconcile.Result
	found, err := r.sb.DeleteChassis(ctx, ident.ChassisName(node))
	if err != nil {
		return result, fmt.Errorf("node %s: %w", node, err)
	}
	if found {
		r.log.Info("deleted the chassis of a node that is gone", "node", node)
		r.left(node, time.Now())
	}
	result.RequeueAfter = r.awaited(node, time.Now())
	r.policies.tell(func(x *policy.Index) { x.DeleteHost(node) })
	r.hosts.forgetNode(node)
	port := ovn.DeletePort(ident.NodePort(node))
	if result.RequeueAfter > 0 {
		port = ovn.EnsurePort(ident.JoinSwitch(podNetwork), topology.GoneNode(node))
	}
	changes := append(r.anchors.gone(node), r.hosts.pending(), port, ovn.DeletePolicies(ident.OwnerNode, node), r.policies.pending())
	if err := r.nb.Apply(ctx, changes...); err != nil {
		return result, fmt.Errorf("node %s: %w", node, err)
	}
	if r.alloc.releaseNode(node) {
		r.alloc.wakeAll()
	}
	return result, nil
}

// left notes that the chassis of a node that is gone was there until now.
func (r *nodeReconciler) left(node string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[node] = now
}

// awaited says for how long a node that is gone keeps its port: 0 is not any more.
func (r *nodeReconciler) awaited(node string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.gone[node]
	if left := chassisReturn - now.Sub(last); known && left > 0 {
		return left
	}
	delete(r.gone, node)
	return 0
}

// returned notes that there is such a node.
func (r *nodeReconciler) returned(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.gone, node)
}

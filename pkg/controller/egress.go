package controller

// Egress reconciler.
// In:   Subnets (egress), Nodes (labels, whether they are ready and may be used, annotation godwit.dev/join), the Leases of nodes that can be gateways; of the northbound database
//       which gateway a Subnet had.
// Out:  LogicalRouterPolicies of a Subnet with godwit.dev/rule egress: all columns that are used, external_ids godwit.dev/egress-node; which Subnets' pods reach hosts by an
//       exception (egress_hosts.go writes it); what the Subnet's status says of it (subnet.go writes it); events on Subnets whose gateway changed.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// egressWorkers is how many Subnets get a gateway at once: they share transactions.
const egressWorkers = 16

// egressAgain is how soon to look again at a Subnet whose gateway is silent, and for which no other was heard often enough.
const egressAgain = 250 * time.Millisecond

// takenAgain is how soon to look again at a Subnet whose addresses another has: it is told nothing when the other gives them up.
const takenAgain = 5 * time.Second

type egressReconciler struct {
	api    client.Client
	nb     *ovn.NB
	queues *queues
	virt   *kubevirt
	beats  *beats
	state  *egressState
	hosts  *hosts
	join   ipam.Spec
	events events.EventRecorder
	log    *slog.Logger
	now    func() time.Time
}

// Reconcile implements reconcile.Reconciler.
func (r *egressReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.hosts.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("egress of Subnet %s: %w", req.Name, err)
	}
	var subnet v1alpha1.Subnet
	err := r.api.Get(ctx, req.NamespacedName, &subnet, client.UnsafeDisableDeepCopy)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read Subnet %s: %w", req.Name, err)
	}
	if apierrors.IsNotFound(err) || subnet.DeletionTimestamp != nil && !controllerutil.ContainsFinalizer(&subnet, v1alpha1.SubnetFinalizer) {
		if r.state.forget(req.Name) { // another may have waited for its addresses
			for _, again := range r.gateways(ctx) {
				r.queues.egress.enqueue(again.NamespacedName)
			}
		}
		return reconcile.Result{}, r.apply(ctx, req.Name, nil, ovn.DeletePolicyRule(ident.OwnerSubnet, req.Name, topology.RuleEgress))
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, nil, nil)
	if err != nil || !subnet.InNetwork() {
		return reconcile.Result{}, nil //nolint:nilerr // its condition Ready says so; what closes it was made with its switch, before its status says that it is in the network
	}
	mode := subnet.Spec.EgressMode()
	next := egress{mode: mode}
	var again time.Duration
	var elsewhere []netip.Prefix
	change := []ovn.Change{ovn.DeletePolicyRule(ident.OwnerSubnet, subnet.Name, topology.RuleEgress)}
	if mode != v1alpha1.EgressNode {
		var through topology.Gateway
		if mode == v1alpha1.EgressGateway {
			if through, next, again, err = r.gateway(ctx, &subnet); err != nil {
				return reconcile.Result{}, err
			}
			next.mode = mode
		}
		change, elsewhere = nil, spec.CIDRs
		for _, p := range topology.SubnetEgress(subnet.Name, spec.CIDRs, through) {
			change = append(change, ovn.EnsurePolicy(ident.Router(podNetwork), p))
		}
	}
	if err := r.apply(ctx, subnet.Name, elsewhere, change...); err != nil {
		return reconcile.Result{}, err
	}
	if was := r.state.get(subnet.Name); was.known && was.mode != mode { // until it is noted, this is tried again
		if err := r.wakeVMs(ctx, subnet.Name); err != nil {
			return reconcile.Result{}, err
		}
	}
	if was, changed := r.state.set(subnet.Name, next); changed {
		r.tell(&subnet, was, next)
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// closed keeps the pods of a Subnet inside that shall not leave through their own nodes, until its egress is reconciled. It is a part of the transaction that makes the Subnet.
func (r *subnetReconciler) closed(subnet *v1alpha1.Subnet, cidrs []netip.Prefix) []ovn.Change {
	if subnet.Spec.EgressMode() == v1alpha1.EgressNode {
		return nil
	}
	r.hosts.setSubnet(subnet.Name, cidrs)
	out := []ovn.Change{r.hosts.pending()}
	for _, p := range topology.SubnetEgress(subnet.Name, cidrs, topology.Gateway{}) {
		out = append(out, ovn.MakePolicy(ident.Router(podNetwork), p))
	}
	return out
}

// apply writes changes of a Subnet's policies. elsewhere are its ranges if its pods do not leave through their own nodes.
func (r *egressReconciler) apply(ctx context.Context, subnet string, elsewhere []netip.Prefix, changes ...ovn.Change) error {
	r.hosts.setSubnet(subnet, elsewhere)
	if err := r.nb.Apply(ctx, append(changes, r.hosts.pending())...); err != nil {
		return fmt.Errorf("egress of Subnet %s: %w", subnet, err)
	}
	return nil
}

// tell logs a change, makes an event of another gateway, and lets the status be written.
func (r *egressReconciler) tell(subnet *v1alpha1.Subnet, was, now egress) {
	r.log.Info("egress", "subnet", subnet.Name, "mode", now.mode, "node", now.node, "was", was.node)
	r.queues.subnets.enqueue(types.NamespacedName{Name: subnet.Name})
	if now.claimed != "" && now.claimed != was.claimed {
		r.events.Eventf(subnet, nil, corev1.EventTypeWarning, reasonEgressClaimed, "ChooseGateway", "%s", now.claimed)
	}
	switch {
	case now.cond == nil || was.cond != nil && *was.cond == *now.cond:
	case now.cond.Status != metav1.ConditionTrue:
		r.events.Eventf(subnet, nil, corev1.EventTypeWarning, now.cond.Reason, "ChooseGateway", "%s", now.cond.Message)
	case was.known:
		r.events.Eventf(subnet, nil, corev1.EventTypeNormal, now.cond.Reason, "ChooseGateway", "%s", now.cond.Message)
	}
}

// wakeVMs lets the VMs of a Subnet have an anchor, or none.
func (r *egressReconciler) wakeVMs(ctx context.Context, subnet string) error {
	var ports v1alpha1.PortList
	if err := r.api.List(ctx, &ports, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the Ports of Subnet %s: %w", subnet, err)
	}
	for i := range ports.Items {
		if ports.Items[i].Status.Subnet == subnet {
			r.virt.enqueue(vmKey(&ports.Items[i]))
		}
	}
	return nil
}

// gateways are the Subnets that may have to choose again.
func (r *egressReconciler) gateways(ctx context.Context) []reconcile.Request {
	var all v1alpha1.SubnetList
	if err := r.api.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		r.log.Error("the Subnets with gateways cannot be found", "error", err)
	}
	var out []reconcile.Request
	for i := range all.Items {
		if all.Items[i].Spec.EgressMode() == v1alpha1.EgressGateway {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
		}
	}
	return out
}

// addEgress lets Subnets' egress be reconciled: by what happens to them, to nodes, and to the Leases of those that can be gateways.
func addEgress(p parts, virt *kubevirt) error {
	r := &egressReconciler{
		api: p.mgr.GetClient(), nb: p.nb, queues: p.queues, virt: virt, beats: newBeats(time.Now), state: p.outside, hosts: p.hosts, join: p.alloc.join.Spec(),
		events: p.mgr.GetEventRecorder("godwit-controller"), log: p.Logger, now: time.Now,
	}
	wake := func(ctx context.Context) {
		for _, again := range r.gateways(ctx) {
			p.egress.enqueue(again.NamespacedName)
		}
	}
	heard := whenever(func(ctx context.Context, o client.Object) {
		lease, ok := o.(*coordinationv1.Lease)
		if !ok {
			return
		}
		if node, news := r.beats.hear(lease); news {
			r.log.Info("a node can be a gateway", "node", node, "addresses", r.beats.of(node).addresses)
			wake(ctx)
		}
	})
	nodes := whenever(func(ctx context.Context, _ client.Object) { wake(ctx) })
	return errors.Join(
		ctrl.NewControllerManagedBy(p.mgr).Named("egress").For(&v1alpha1.Subnet{}).Watches(&coordinationv1.Lease{}, heard).
			Watches(&corev1.Node{}, nodes, builder.WithPredicates(usable())).WatchesRawSource(&p.egress).WithOptions(options(egressWorkers)).Complete(r),
		ctrl.NewControllerManagedBy(p.mgr).Named("hosts").For(&discoveryv1.EndpointSlice{}, ofServers()).WithOptions(options(1)).Complete(p.hosts),
	)
}

// usable: whether a node can be a gateway may be another than before.
func usable() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		now, is := e.ObjectNew.(*corev1.Node)
		return ok && is && (isReady(before) != isReady(now) || before.Spec.Unschedulable != now.Spec.Unschedulable || !maps.Equal(before.Labels, now.Labels) ||
			before.Annotations[v1alpha1.JoinAnnotation] != now.Annotations[v1alpha1.JoinAnnotation])
	}}
}

// egress is how a Subnet's pods leave the cluster.
type egress struct {
	// known: it was found out.
	known bool
	mode  v1alpha1.EgressMode
	// node and cond are the gateway's.
	node string
	cond *metav1.Condition
	// addresses were found to be the Subnet's; claimed says which node says otherwise.
	addresses []netip.Addr
	claimed   string
}

// egressState is the egress of all Subnets, for their status. It is safe for concurrent use.
type egressState struct {
	mu      sync.Mutex
	subnets map[string]egress
	// waits is since when Subnets wait for a node that has their addresses.
	waits map[string]time.Time
}

func newEgressState() *egressState {
	return &egressState{subnets: map[string]egress{}, waits: map[string]time.Time{}}
}

// set says what was, and whether that was something else.
func (s *egressState) set(subnet string, now egress) (was egress, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now.known = true
	was = s.subnets[subnet]
	s.subnets[subnet] = now
	same := was.known && was.mode == now.mode && was.node == now.node && was.claimed == now.claimed && (was.cond == nil) == (now.cond == nil) && (was.cond == nil || *was.cond == *now.cond)
	return was, !same
}

// forget says whether anything was known.
func (s *egressState) forget(subnet string) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known = s.subnets[subnet]
	delete(s.subnets, subnet)
	delete(s.waits, subnet)
	return known
}

// wait is for how much longer a Subnet waits for a node that has its addresses; it begins to if it does not yet.
func (s *egressState) wait(subnet string, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, waits := s.waits[subnet]
	if !waits {
		s.waits[subnet], since = now, now
	}
	return since.Add(v1alpha1.EgressRestart).Sub(now)
}

// endWait: it does not wait, or not any more.
func (s *egressState) endWait(subnet string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waits, subnet)
}

func (s *egressState) get(subnet string) egress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subnets[subnet]
}

// write puts what is known into a Subnet's status, and says whether the condition turned.
func (e egress) write(status *v1alpha1.SubnetStatus, generation int64) (turned bool) {
	if !e.known {
		return false
	}
	status.EgressNode = e.node
	if e.cond == nil {
		before := len(status.Conditions)
		status.Conditions = slices.DeleteFunc(status.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionEgress })
		return len(status.Conditions) != before
	}
	return setCondition(&status.Conditions, *e.cond, generation)
}

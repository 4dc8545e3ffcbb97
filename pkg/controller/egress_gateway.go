package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// gateway finds the node through which all pods of a Subnet leave, with what is told of it, and when to look again.
func (r *egressReconciler) gateway(ctx context.Context, subnet *v1alpha1.Subnet) (topology.Gateway, egress, time.Duration, error) {
	cond := condition(metav1.ConditionFalse, reasonEgressInvalid, unusable(subnet))
	cond.Type = v1alpha1.ConditionEgress
	if cond.Message != "" {
		return topology.Gateway{}, egress{cond: &cond}, 0, nil
	}
	active, err := r.active(ctx, subnet)
	if err != nil {
		return topology.Gateway{}, egress{}, 0, err
	}
	whose, err := r.taken(ctx, subnet, active)
	if err != nil {
		return topology.Gateway{}, egress{}, 0, err
	}
	if cond.Reason, cond.Message = reasonEgressTaken, whose.taken; whose.taken != "" {
		return topology.Gateway{}, egress{cond: &cond}, takenAgain, nil
	}
	next := egress{cond: &cond, addresses: parseAddrs(subnet.Spec.Egress.Addresses), claimed: whose.claimed}
	all, joins, again, err := r.candidates(ctx, subnet)
	if err != nil {
		return topology.Gateway{}, egress{}, 0, err
	}
	chosen := chooseGateway(subnet.Name, active, all)
	if chosen.again {
		again = egressAgain
	}
	if holder, left := r.held(subnet, active, chosen.node); holder != "" {
		cond.Reason = reasonNoAddress
		cond.Message = fmt.Sprintf("node %s is to be the gateway, and node %s still has addresses of %v: pods cannot leave the cluster until its godwit-agent has given them up, for %s at most",
			chosen.node, holder, subnet.Spec.Egress.Addresses, v1alpha1.EgressRestart)
		return topology.Gateway{}, next, sooner(again, left+time.Millisecond), nil
	}
	through := topology.Gateway{Node: chosen.node}
	missing := missingFamilies(subnet, r.beats.of(chosen.node).addresses)
	for _, ip := range joins[chosen.node].IPs {
		if !missing[ip.Addr().Is6()] {
			through.Via = append(through.Via, ip.Addr())
		}
	}
	if chosen.reason == reasonGateway && len(missing) > 0 {
		chosen.reason = reasonNoAddress
	}
	cond.Reason = chosen.reason
	switch chosen.reason {
	case reasonGateway:
		cond.Status, cond.Message = metav1.ConditionTrue, "pods leave the cluster through node "+chosen.node
	case reasonNoAddress:
		cond.Message = fmt.Sprintf("node %s is the gateway, and has not said that it has all of %v: pods cannot leave the cluster under them; if it stays so, look at its godwit-agent",
			chosen.node, subnet.Spec.Egress.Addresses)
	case reasonGatewaySilent:
		cond.Message = fmt.Sprintf("the godwit-agent of node %s is silent, and no other node that egress.nodeSelector selects can take over: pods leave the cluster only if the node still works", chosen.node)
	case reasonNoGateway:
		cond.Message = fmt.Sprintf("no node that egress.nodeSelector selects has a godwit-agent that says it works (%d are selected): pods cannot leave the cluster; "+
			"label a node, or look at the agents there", len(all))
	}
	next.node = through.Node
	return through, next, again, nil
}

// held says which node still has addresses of a Subnet that another is to get, and for how long nobody else gets them: until it says that it has none, or cannot have any more. An agent
// that is away asks for no more patience than one that does not hear that it shall give them up gets.
func (r *egressReconciler) held(subnet *v1alpha1.Subnet, active, next string) (holder string, left time.Duration) {
	if next != active && next != "" {
		holder, left = r.beats.holder(parseAddrs(subnet.Spec.Egress.Addresses), next)
	}
	if holder == "" {
		r.state.endWait(subnet.Name)
		return "", 0
	}
	patience := r.state.wait(subnet.Name, r.now())
	if patience <= 0 {
		return "", 0
	}
	return holder, min(left, patience)
}

// missingFamilies are the families, by whether they are IPv6, of which a Subnet wants an address that its gateway does not have.
func missingFamilies(subnet *v1alpha1.Subnet, has []netip.Addr) map[bool]bool {
	missing := map[bool]bool{}
	for _, a := range parseAddrs(subnet.Spec.Egress.Addresses) {
		if !slices.Contains(has, a) {
			missing[a.Is6()] = true
		}
	}
	return missing
}

// unusable says which of the Subnet's egress addresses no node can have for what it forwards, empty if there is none.
func unusable(subnet *v1alpha1.Subnet) string {
	for _, ip := range parseAddrs(subnet.Spec.Egress.Addresses) {
		if !ip.IsGlobalUnicast() {
			return fmt.Sprintf("%s of egress.addresses is no address that others can answer to (it is a loopback, link-local, multicast or broadcast address): choose another", ip)
		}
	}
	return ""
}

// ownership is whose a Subnet's egress addresses are: empty if they are its own.
type ownership struct {
	// taken says who has one.
	taken string
	// claimed says which node says that it has one that is the Subnet's.
	claimed string
}

// taken says whose the Subnet's egress addresses are. Of two Subnets with the same address the older one has it. What a node says of its own addresses anybody may have told it, and
// takes none from a Subnet that has it: because it was accepted before, or because the gateway has it.
func (r *egressReconciler) taken(ctx context.Context, subnet *v1alpha1.Subnet, active string) (ownership, error) {
	want := parseAddrs(subnet.Spec.Egress.Addresses)
	var out ownership
	if len(want) == 0 {
		return out, nil
	}
	for _, ip := range want {
		if slices.ContainsFunc(r.join.CIDRs, func(c netip.Prefix) bool { return c.Contains(ip) }) {
			return ownership{taken: fmt.Sprintf("%s of egress.addresses is in the join network between router and nodes: choose one outside of the cluster's network", ip)}, nil
		}
	}
	var nodes corev1.NodeList
	var all v1alpha1.SubnetList
	if err := errors.Join(r.api.List(ctx, &nodes, client.UnsafeDisableDeepCopy), r.api.List(ctx, &all, client.UnsafeDisableDeepCopy)); err != nil {
		return ownership{}, fmt.Errorf("who has the addresses of Subnet %s: %w", subnet.Name, err)
	}
	had := slices.Concat(r.state.get(subnet.Name).addresses, r.beats.of(active).addresses)
	for i := range nodes.Items {
		for _, a := range nodes.Items[i].Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && slices.Contains(want, ip) {
				if slices.Contains(had, ip) {
					text := fmt.Sprintf("node %s says that %s of egress.addresses is its own: the Subnet keeps it; look at the Node's status.addresses, and at who writes them", nodes.Items[i].Name, ip)
					if out.claimed == "" || text < out.claimed { // of several always the same: the cache has no order
						out.claimed = text
					}
					continue
				}
				return ownership{taken: fmt.Sprintf("%s of egress.addresses is node %s's own: choose one that nobody has", ip, nodes.Items[i].Name)}, nil
			}
		}
	}
	for i := range all.Items {
		other := &all.Items[i]
		cidrs, _ := ipam.ParseCIDRs(other.Spec.CIDRs) // another's mistakes are told there
		for _, ip := range want {
			if slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(ip) }) {
				return ownership{taken: fmt.Sprintf("%s of egress.addresses is in the range of Subnet %s: choose one outside of the cluster's network", ip, other.Name)}, nil
			}
			if other.Name != subnet.Name && older(other, subnet) && other.Spec.EgressMode() == v1alpha1.EgressGateway && slices.Contains(parseAddrs(other.Spec.Egress.Addresses), ip) {
				return ownership{taken: fmt.Sprintf("%s of egress.addresses is Subnet %s's already: choose another", ip, other.Name)}, nil
			}
		}
	}
	return out, nil
}

// active is the gateway that the Subnet has: by its policies, or by its status if the database was lost.
func (r *egressReconciler) active(ctx context.Context, subnet *v1alpha1.Subnet) (string, error) {
	have, err := r.nb.PolicyRule(ctx, ident.OwnerSubnet, subnet.Name, topology.RuleEgress)
	if err != nil {
		return "", err
	}
	for _, p := range have {
		if node := p.ExternalIDs[ident.KeyEgressNode]; node != "" {
			return node, nil
		}
	}
	return subnet.Status.EgressNode, nil
}

// candidates are the nodes that the Subnet selects, with their places on the join network, and when the first of those that are heard of may have failed.
func (r *egressReconciler) candidates(ctx context.Context, subnet *v1alpha1.Subnet) ([]candidate, map[string]v1alpha1.Join, time.Duration, error) {
	selector, err := metav1.LabelSelectorAsSelector(subnet.Spec.Egress.NodeSelector)
	if err != nil {
		r.log.Warn("egress.nodeSelector selects no node", "subnet", subnet.Name, "error", err)
		selector = labels.Nothing()
	}
	var nodes corev1.NodeList
	if err := r.api.List(ctx, &nodes, client.MatchingLabelsSelector{Selector: selector}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, nil, 0, fmt.Errorf("list the Nodes that Subnet %s selects: %w", subnet.Name, err)
	}
	var all []candidate
	var again time.Duration
	joins, now := map[string]v1alpha1.Join{}, r.now()
	for i := range nodes.Items {
		n := &nodes.Items[i]
		join, err := v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation])
		if err != nil {
			continue // it is not in the network yet
		}
		b := r.beats.of(n.Name)
		c := candidate{node: n.Name, last: b.last, before: b.before}
		if left := b.left(now); left > 0 {
			c.rank = rankPoor
			again = sooner(again, left+time.Millisecond)
			if isReady(n) && !n.Spec.Unschedulable {
				c.rank = rankGood
			}
		}
		all, joins[n.Name] = append(all, c), join
	}
	return all, joins, again, nil
}

package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// restoreJoin takes back the places that nodes have by their annotations. Only the first call does anything.
func (a *allocations) restoreJoin(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.joinRestored {
		return nil
	}
	var nodes corev1.NodeList
	if err := a.api.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list nodes to restore the join network: %w", err)
	}
	slices.SortStableFunc(nodes.Items, func(x, y corev1.Node) int { return x.CreationTimestamp.Compare(y.CreationTimestamp.Time) })
	for i := range nodes.Items {
		name := nodes.Items[i].Name
		if j, err := v1alpha1.ParseJoin(nodes.Items[i].Annotations[v1alpha1.JoinAnnotation]); err == nil {
			// Whoever loses is given another place when it is reconciled.
			_ = a.join.Claim(name, addrsOf(j.IPs))
			_ = a.join.Claim(clientsOf(name), addrsOf(j.Clients))
		}
	}
	a.joinRestored = true
	return nil
}

// clientsOf owns the second addresses of a node on the join network. No node's name has a slash in it.
func clientsOf(node string) string { return node + "/clients" }

// joinNode gives a node its place on the join switch: of both its addresses those that it has, those of its annotation when they are free, or new ones. With an
// error the place may be there all the same, without Clients: the node goes on as before, but for its Services.
func (a *allocations) joinNode(node string, has v1alpha1.Join) (v1alpha1.Join, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ips, err := a.joinAs(node, has.IPs)
	if err != nil {
		return v1alpha1.Join{}, err
	}
	clients, err := a.joinAs(clientsOf(node), has.Clients)
	return v1alpha1.Join{IPs: ips, Clients: clients, MAC: v1alpha1.MAC(ident.MAC(ips[0].Addr())), Gateways: a.join.Spec().Gateways}, err
}

func (a *allocations) joinAs(owner string, has []netip.Prefix) ([]netip.Prefix, error) {
	if len(has) > 0 && a.join.Claim(owner, addrsOf(has)) == nil {
		return a.join.Of(owner), nil
	}
	ips, err := a.join.Allocate(owner)
	if err != nil {
		return nil, fmt.Errorf("join network: %w", err)
	}
	return ips, nil
}

// setNodeMTU records the MTU in bytes that a node published and reports whether the smallest of all changed.
func (a *allocations) setNodeMTU(node string, mtu int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.smallestMTU()
	a.mtus[node] = mtu
	return a.smallestMTU() != before
}

// restoreMTUs records what all nodes have published, so that no pod is told of an MTU that is only the smallest of the nodes reconciled so far.
func (a *allocations) restoreMTUs(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := a.api.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list nodes to restore the smallest MTU: %w", err)
	}
	for i := range nodes.Items {
		if mtu, ok := parseMTU(nodes.Items[i].Annotations[v1alpha1.MTUAnnotation]); ok {
			a.setNodeMTU(nodes.Items[i].Name, mtu)
		}
	}
	return nil
}

// mtu is the largest MTU in bytes that every node can carry; 0 while no node has published one.
func (a *allocations) mtu() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.smallestMTU()
}

func (a *allocations) smallestMTU() int {
	smallest := 0
	for _, m := range a.mtus {
		if smallest == 0 || m < smallest {
			smallest = m
		}
	}
	return smallest
}

// releaseNode takes back a node's place and reports whether the smallest MTU of all changed.
func (a *allocations) releaseNode(node string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.smallestMTU()
	a.join.Release(node)
	a.join.Release(clientsOf(node))
	delete(a.mtus, node)
	return a.smallestMTU() != before
}

// wakeAll enqueues everybody: the smallest MTU has changed, pods that are not attached yet take the new one, and Subnets advertise it.
func (a *allocations) wakeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for h := range a.held {
		a.enqueue(h)
	}
	for subnet := range a.pools {
		a.queues.subnets.enqueue(types.NamespacedName{Name: subnet})
	}
	a.wakeWaiting()
}

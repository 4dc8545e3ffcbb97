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
	for _, n := range nodes.Items {
		if j, err := v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation]); err == nil {
			_ = a.join.Claim(n.Name, addrsOf(j.IPs)) // whoever loses is given another place when it is reconciled
		}
	}
	a.joinRestored = true
	return nil
}

// joinNode gives a node its place on the join switch: the one it has, the one of its annotation when it is free, or a new one.
func (a *allocations) joinNode(node string, has []netip.Addr) (v1alpha1.Join, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if has == nil || a.join.Claim(node, has) != nil {
		if _, err := a.join.Allocate(node); err != nil {
			return v1alpha1.Join{}, fmt.Errorf("join network: %w", err)
		}
	}
	ips := a.join.Of(node)
	return v1alpha1.Join{IPs: ips, MAC: v1alpha1.MAC(ident.MAC(ips[0].Addr())), Gateways: a.join.Spec().Gateways}, nil
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

package controller

// Hosts: what is in the cluster and is no pod, and the Subnets that need an exception for it.
// In:   Nodes (status.addresses), the EndpointSlices of the Service default/kubernetes, Subnets (their ranges and whether their egress is another than Node).
// Out:  NB Address_Set godwit_hosts_ip4, godwit_hosts_ip6, godwit_elsewhere_ip4, godwit_elsewhere_ip6.
// Pods reach hosts through their own node, whatever the egress of their Subnet is: else the API server would be outside, and every other Service whose endpoints are on hosts.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// apiService is the Service of the API server.
const apiService = "kubernetes"

// hosts knows the addresses. It is safe for concurrent use.
type hosts struct {
	api client.Reader
	nb  *ovn.NB
	// restored is closed when everything that exists has been told.
	restored chan struct{}

	mu    sync.Mutex
	nodes map[string][]netip.Addr
	// elsewhere are the ranges of Subnets whose pods do not leave through their own nodes.
	elsewhere map[string][]netip.Prefix
	// servers are the API servers'.
	servers  []netip.Addr
	revision // of all of them
}

func newHosts(p parts) *hosts {
	return &hosts{
		api: p.mgr.GetClient(), nb: p.nb, restored: make(chan struct{}), nodes: map[string][]netip.Addr{}, elsewhere: map[string][]netip.Prefix{}, revision: revision{version: 1},
	}
}

// restore reads all of them and writes them. It is called once, on the leader.
func (h *hosts) restore(ctx context.Context) error {
	var list corev1.NodeList
	if err := h.api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Nodes: %w", err)
	}
	for i := range list.Items {
		h.setNode(&list.Items[i])
	}
	var subnets v1alpha1.SubnetList
	if err := h.api.List(ctx, &subnets, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Subnets: %w", err)
	}
	for i := range subnets.Items {
		s := &subnets.Items[i]
		cidrs, err := ipam.ParseCIDRs(s.Spec.CIDRs)
		if err == nil && s.InNetwork() && s.Spec.EgressMode() != v1alpha1.EgressNode {
			h.setSubnet(s.Name, cidrs)
		}
	}
	if err := h.readServers(ctx); err != nil {
		return err
	}
	close(h.restored)
	return nil
}

// wait returns nil when everything that exists has been told: what is written before would be a part of it.
func (h *hosts) wait(ctx context.Context) error {
	select {
	case <-h.restored:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the addresses of nodes and API servers to be read: %w", context.Cause(ctx))
	}
}

// readServers reads the API servers' addresses and writes what has changed.
func (h *hosts) readServers(ctx context.Context) error {
	var list discoveryv1.EndpointSliceList
	err := h.api.List(ctx, &list, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{discoveryv1.LabelServiceName: apiService}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("list the EndpointSlices of the API server: %w", err)
	}
	var servers []netip.Addr
	for i := range list.Items {
		for _, e := range list.Items[i].Endpoints {
			servers = append(servers, parseAddrs(e.Addresses)...)
		}
	}
	h.mu.Lock()
	if servers = sorted(servers); !slices.Equal(h.servers, servers) {
		h.servers = servers
		h.version++
	}
	h.mu.Unlock()
	if err := h.nb.Apply(ctx, h.pending()); err != nil {
		return fmt.Errorf("addresses of nodes and API servers: %w", err)
	}
	return nil
}

// setNode tells of a node's addresses.
func (h *hosts) setNode(node *corev1.Node) {
	var ips []netip.Addr
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil { // else a host name
			ips = append(ips, ip.Unmap().WithZone(""))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if was, known := h.nodes[node.Name]; !known || !slices.Equal(was, ips) {
		h.nodes[node.Name] = ips
		h.version++
	}
}

// forgetNode tells that a node is gone.
func (h *hosts) forgetNode(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.nodes[node]; known {
		delete(h.nodes, node)
		h.version++
	}
}

// setSubnet tells of the ranges of a Subnet whose pods do not leave through their own nodes; none of any other.
func (h *hosts) setSubnet(subnet string, cidrs []netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Equal(h.elsewhere[subnet], cidrs) {
		return
	}
	h.version++
	if h.elsewhere[subnet] = cidrs; len(cidrs) == 0 {
		delete(h.elsewhere, subnet)
	}
}

// rewrite lets the sets be written again: somebody may have changed them.
func (h *hosts) rewrite() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.written = 0
}

// pending writes what has been told and is not written yet.
func (h *hosts) pending() ovn.Change { return ovn.Later(h.changes) }

func (h *hosts) changes(transaction int) []ovn.Change {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.due(transaction) {
		return nil
	}
	all := slices.Clone(h.servers)
	for _, ips := range h.nodes {
		all = append(all, ips...)
	}
	var elsewhere []netip.Prefix
	for _, cidrs := range h.elsewhere {
		elsewhere = append(elsewhere, cidrs...)
	}
	slices.SortFunc(elsewhere, netip.Prefix.Compare)
	version, missing := h.version, false
	settled := func(sets int, err error) {
		missing = missing || err != nil || sets == 0
		if missing {
			h.settled(0)
		} else {
			h.settled(version)
		}
	}
	var out []ovn.Change
	for _, set := range slices.Concat(topology.HostSets(sorted(all)), topology.ElsewhereSets(slices.Compact(elsewhere))) {
		row := *set
		row.Addresses = nil
		out = append(out, ovn.MakeAddressSet(&row), ovn.SetAddresses(set.Name, set.Addresses, settled))
	}
	return out
}

// settled notes what the database has.
func (h *hosts) settled(version int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.written = version
}

// sorted is without duplicates: the database knows sets.
func sorted(ips []netip.Addr) []netip.Addr {
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips)
}

// Reconcile implements reconcile.Reconciler, for the EndpointSlices of the API server.
func (h *hosts) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := h.wait(ctx); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, h.readServers(ctx)
}

// ofServers are the EndpointSlices of the API server.
func ofServers() builder.Predicates {
	return builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
		return o.GetNamespace() == metav1.NamespaceDefault && o.GetLabels()[discoveryv1.LabelServiceName] == apiService
	}))
}

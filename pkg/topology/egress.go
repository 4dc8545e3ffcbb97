package topology

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Values of ident.KeyRule of the policies that say how pods leave the cluster, and of the address sets that they name.
const (
	// ruleAnchor: VMs that leave through the node on which they started.
	ruleAnchor = "anchor"
	// ruleHosts: what is addressed to nodes, by pods that do not leave through their own.
	ruleHosts = "hosts"
	// ruleElsewhere: the ranges of Subnets whose pods do not leave through their own nodes.
	ruleElsewhere = "elsewhere"
	// RuleEgress: all pods of a Subnet (SubnetEgress).
	RuleEgress = "egress"
)

// exceptions are the policies of a node by which pods leave through it that run elsewhere, or that leave elsewhere but for nodes. A VM in the node's set does so wherever
// it runs: the policy needs no residence, since a packet is routed on the VM's chassis and tunnelled to the node's.
func exceptions(node string, ip netip.Addr) []*nbdb.LogicalRouterPolicy {
	f, owner := family(ip), withFamily(ownedBy(ident.OwnerNode, node), ip)
	return []*nbdb.LogicalRouterPolicy{
		reroute(priorityAnchor, fmt.Sprintf("%s.src == $%s", f, ident.AnchorSet(node, f)), ip, withRule(owner, ruleAnchor)),
		reroute(priorityHosts, fmt.Sprintf("%s.dst == $%s && %s.src == $%s && is_chassis_resident(%q)", f, ident.HostSet(f), f, ident.ElsewhereSet(f), ident.NodePort(node)), ip,
			withRule(owner, ruleHosts)),
	}
}

// AnchorSets returns a node's sets, one per family, of the addresses of VMs that leave through it.
func AnchorSets(node string, addresses []netip.Addr) []*nbdb.AddressSet {
	return sets(func(f string) string { return ident.AnchorSet(node, f) }, single(addresses), withRule(ownedBy(ident.OwnerNode, node), ruleAnchor))
}

// HostSets returns the sets, one per family, of the addresses of what is in the cluster and is no pod.
func HostSets(addresses []netip.Addr) []*nbdb.AddressSet {
	return sets(ident.HostSet, single(addresses), withRule(ownedBy(ident.OwnerNetwork, ident.DefaultNetwork), ruleHosts))
}

// ElsewhereSets returns the sets, one per family, of the ranges of Subnets whose pods do not leave through their own nodes (SubnetEgress), but reach nodes through them.
func ElsewhereSets(cidrs []netip.Prefix) []*nbdb.AddressSet {
	return sets(ident.ElsewhereSet, cidrs, withRule(ownedBy(ident.OwnerNetwork, ident.DefaultNetwork), ruleElsewhere))
}

func single(addresses []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func sets(name func(family string) string, members []netip.Prefix, owner map[string]string) []*nbdb.AddressSet {
	var out []*nbdb.AddressSet
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		set := &nbdb.AddressSet{Name: name(family(any)), ExternalIDs: withFamily(owner, any)}
		for _, m := range members {
			if family(m.Addr()) != family(any) {
				continue
			}
			text := m.String()
			if m.IsSingleIP() {
				text = m.Addr().String()
			}
			set.Addresses = append(set.Addresses, text)
		}
		out = append(out, set)
	}
	return out
}

// Gateway is through which node all pods of a Subnet leave the cluster.
type Gateway struct {
	// Node, if not empty, has the addresses Via on the join switch, one per family.
	Node string
	Via  []netip.Addr
}

// SubnetEgress returns the policies of a Subnet whose pods do not leave through their own nodes, one for each family: they leave through the gateway, and what it has no
// address for goes nowhere, nor does what is of a family that the Subnet has not. It is the switch that they are known by, not their addresses: a VM may have the permission to
// send from others.
func SubnetEgress(name string, cidrs []netip.Prefix, through Gateway) []*nbdb.LogicalRouterPolicy {
	var out []*nbdb.LogicalRouterPolicy
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		f := family(any)
		match := fmt.Sprintf("inport == %q && %s", ident.RouterPort(ident.SubnetSwitch(name)), f)
		ids := withRule(withFamily(ownedBy(ident.OwnerSubnet, name), any), RuleEgress)
		ids[ident.KeyEgressNode] = through.Node
		row := &nbdb.LogicalRouterPolicy{Priority: prioritySubnet, Match: match, Action: nbdb.LogicalRouterPolicyActionDrop, ExternalIDs: ids}
		if slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return family(c.Addr()) == f }) {
			for _, via := range through.Via {
				if family(via) == f {
					row = reroute(prioritySubnet, match, via, ids)
				}
			}
		}
		out = append(out, row)
	}
	return out
}

// SubnetEgressRule tells the policies of SubnetEgress from the Subnet's others.
func SubnetEgressRule(p *nbdb.LogicalRouterPolicy) bool {
	return p.ExternalIDs[ident.KeyRule] == RuleEgress
}

func reroute(priority int, match string, via netip.Addr, ids map[string]string) *nbdb.LogicalRouterPolicy {
	return &nbdb.LogicalRouterPolicy{
		Priority: priority, Match: match, Action: nbdb.LogicalRouterPolicyActionReroute, Nexthops: []string{via.String()}, ExternalIDs: ids,
	}
}

func withRule(ids map[string]string, rule string) map[string]string {
	m := map[string]string{ident.KeyRule: rule}
	for k, v := range ids {
		if k != ident.KeyRule {
			m[k] = v
		}
	}
	return m
}

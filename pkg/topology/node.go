package topology

import (
	"fmt"
	"slices"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// NodeRows are the rows of one node of a network.
type NodeRows struct {
	// Port is the node's ovn0, on the join switch, with both of its addresses. It has no port security: clients of a hostPort come through it under their own addresses.
	Port *nbdb.LogicalSwitchPort
	// Egress are the policies, for each family, that send what the pods of this node send to the outside through the node's ovn0, and what VMs send that are anchored to it.
	Egress []*nbdb.LogicalRouterPolicy
}

// Node returns the rows of a node whose place on the join switch is join.
func Node(node string, join v1alpha1.Join) NodeRows {
	owner := ownedBy(ident.OwnerNode, node)
	port := ident.NodePort(node)
	rows := NodeRows{Port: &nbdb.LogicalSwitchPort{
		Name:        string(port),
		Addresses:   []string{Addresses(join.MAC, slices.Concat(join.IPs, join.Clients))},
		Options:     map[string]string{ident.OptionRequestedChassis: node},
		ExternalIDs: owner,
	}}
	for _, ip := range join.IPs {
		rows.Egress = append(rows.Egress, &nbdb.LogicalRouterPolicy{
			Priority: priorityEgress, Action: nbdb.LogicalRouterPolicyActionReroute,
			Match:       fmt.Sprintf("%s && is_chassis_resident(%q)", family(ip.Addr()), port),
			Nexthops:    []string{ip.Addr().String()},
			ExternalIDs: withFamily(owner, ip.Addr()),
		})
		rows.Egress = append(rows.Egress, exceptions(node, ip.Addr())...)
	}
	return rows
}

// GoneNode is the port of a node that was deleted, as long as its chassis may come back: it has no address, and no chassis may claim it.
func GoneNode(node string) *nbdb.LogicalSwitchPort {
	return &nbdb.LogicalSwitchPort{
		Name: string(ident.NodePort(node)), Options: map[string]string{ident.OptionRequestedChassis: string(ident.NoChassis)}, ExternalIDs: ownedBy(ident.OwnerNode, node),
	}
}

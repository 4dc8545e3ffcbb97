package topology

import (
	"net/netip"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Priorities of the router's policies: what stays inside the network is decided before what leaves it, and what leaves by an exception before what leaves where it runs. A Subnet's
// word comes before that of anchors: these know a VM by its address, from which a VM of another Subnet may have the permission to send.
const (
	// priorityHairpin is for what no pod sends, wherever it is to go.
	priorityHairpin = 1100
	priorityInside  = 1000
	// priorityLocalServices is for what no load balancer on the client's node took.
	priorityLocalServices = 900
	priorityHosts         = 700
	prioritySubnet        = 600
	priorityAnchor        = 500
	priorityEgress        = 100
)

// NetworkRows are the rows of a network itself.
type NetworkRows struct {
	Router *nbdb.LogicalRouter
	Join   SwitchRows
	// DefaultRoutes let a packet for an outside address reach the policy stage; without a route OVN drops it before. Their next hop, the last address of the join
	// network, belongs to nobody.
	DefaultRoutes []*nbdb.LogicalRouterStaticRoute
	// Drops are policies of the router: for what is sent to a Service of internalTrafficPolicy Local from a node that has no endpoint of it, and for what comes from outside, or a node, with the source that a
	// pod's connection to itself through a Service has, which NetworkPolicies permit.
	Drops []*nbdb.LogicalRouterPolicy
}

// Network returns the rows of a network whose join switch has the addresses of join.
func Network(network string, join ipam.Spec) NetworkRows {
	owner := ownedBy(ident.OwnerNetwork, network)
	rows := NetworkRows{
		Router: &nbdb.LogicalRouter{Name: string(ident.Router(network)), Options: learning(), ExternalIDs: owner},
		Join:   switchRows(ident.JoinSwitch(network), join, owner),
	}
	out := string(ident.RouterPort(ident.JoinSwitch(network)))
	for _, c := range join.CIDRs {
		rows.DefaultRoutes = append(rows.DefaultRoutes, &nbdb.LogicalRouterStaticRoute{
			IPPrefix: anywhere(c.Addr()).String(), Nexthop: EgressPlaceholder(c).String(), OutputPort: &out,
			ExternalIDs: withFamily(owner, c.Addr()),
		})
		rows.Drops = append(rows.Drops, localServicesPolicy(c.Addr()), hairpinPolicy(network, c.Addr()))
	}
	return rows
}

// learning bounds what the router learns of neighbours. The addresses of pods, VMs and nodes are in the northbound database; what is left are guests' own
// link-local addresses, of which a hostile guest has as many as it likes: they are forgotten after some minutes, and not taken from ARP requests (ovn-nb(5)).
func learning() map[string]string {
	return map[string]string{"mac_binding_age_threshold": "300", "always_learn_from_arp_request": "false"}
}

// EgressPlaceholder is the address of a join network that is the next hop of its default route: the last one but one, which must not be given to a node.
func EgressPlaceholder(join netip.Prefix) netip.Addr { return ipam.Last(join).Prev() }

// family is OVN's name of an address family in matches.
func family(a netip.Addr) string {
	if a.Is4() {
		return "ip4"
	}
	return "ip6"
}

func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ownedBy(kind, name string) map[string]string {
	return map[string]string{ident.OwnerKey: kind, ident.KeyName: name}
}

func withFamily(owner map[string]string, a netip.Addr) map[string]string {
	m := map[string]string{ident.KeyFamily: family(a)}
	for k, v := range owner {
		m[k] = v
	}
	return m
}

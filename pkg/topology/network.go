package topology

import (
	"net/netip"
	"strconv"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Priorities of the router's policies: what stays inside the network is decided before what leaves it.
const (
	priorityInside = 1000
	priorityEgress = 100
)

// NetworkRows are the rows of a network itself.
type NetworkRows struct {
	Router *nbdb.LogicalRouter
	Join   SwitchRows
	// DefaultRoutes let a packet for an outside address reach the policy stage; without a route OVN drops it before. Their next hop, the last address of the join
	// network, belongs to nobody.
	DefaultRoutes []*nbdb.LogicalRouterStaticRoute
}

// SwitchRows are a logical switch and its connection to the router.
type SwitchRows struct {
	Switch     *nbdb.LogicalSwitch
	RouterPort *nbdb.LogicalRouterPort
	Uplink     *nbdb.LogicalSwitchPort
	// DHCPv6 is what OVN answers the guests of VMs with; nil if there is no IPv6.
	DHCPv6 *nbdb.DHCPOptions
	// Inside are the policies that keep traffic for the switch's own addresses from leaving through a node.
	Inside []*nbdb.LogicalRouterPolicy
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

// Subnet returns the rows of a Subnet whose interfaces have the MTU in bytes; 0 if that is not known yet.
func Subnet(name string, spec ipam.Spec, mtu int) SwitchRows {
	owner := ownedBy(ident.OwnerSubnet, name)
	rows := switchRows(ident.SubnetSwitch(name), spec, owner)
	for _, c := range spec.CIDRs {
		if c.Addr().Is6() {
			rows.RouterPort.Ipv6RaConfigs = advertisement(mtu)
			rows.DHCPv6 = &nbdb.DHCPOptions{
				Cidr: c.String(), Options: map[string]string{"server_id": rows.RouterPort.MAC}, ExternalIDs: withFamily(owner, c.Addr()),
			}
		}
	}
	return rows
}

// advertisement is what the router advertises to guests, which have their addresses by DHCPv6: pods are configured by the agent and listen to none. It is
// repeated, for a guest does not ask again when its default route expires.
func advertisement(mtu int) map[string]string {
	ra := map[string]string{"address_mode": "dhcpv6_stateful", "send_periodic": "true", "max_interval": "900", "min_interval": "300"}
	if mtu != 0 {
		ra["mtu"] = strconv.Itoa(mtu)
	}
	return ra
}

func switchRows(ls ident.SwitchName, spec ipam.Spec, owner map[string]string) SwitchRows {
	rows := SwitchRows{
		Switch: &nbdb.LogicalSwitch{Name: string(ls), ExternalIDs: owner},
		RouterPort: &nbdb.LogicalRouterPort{
			Name: string(ident.RouterPort(ls)), MAC: ident.GatewayMAC(ls).String(), ExternalIDs: owner,
		},
		Uplink: &nbdb.LogicalSwitchPort{
			Name: string(ident.SwitchRouterPort(ls)), Type: "router", Addresses: []string{"router"},
			Options: map[string]string{ident.OptionRouterPort: string(ident.RouterPort(ls))}, ExternalIDs: owner,
		},
	}
	for i, c := range spec.CIDRs {
		rows.RouterPort.Networks = append(rows.RouterPort.Networks, netip.PrefixFrom(spec.Gateways[i], c.Bits()).String())
		rows.Inside = append(rows.Inside, &nbdb.LogicalRouterPolicy{
			Priority: priorityInside, Match: family(c.Addr()) + ".dst == " + c.String(), Action: nbdb.LogicalRouterPolicyActionAllow,
			ExternalIDs: withFamily(owner, c.Addr()),
		})
	}
	return rows
}

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

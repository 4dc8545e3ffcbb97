package topology

import (
	"net/netip"
	"strconv"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

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

// ForSecondNetworks are the rows of a Subnet in which guests have their second NICs alone: its router is the one that they take last. Their default route is that of the pod
// network, and what they answer there by another router is dropped by port security.
func (r SwitchRows) ForSecondNetworks() SwitchRows {
	if r.RouterPort.Ipv6RaConfigs != nil {
		r.RouterPort.Ipv6RaConfigs["router_preference"] = "LOW"
	}
	return r
}

// advertisement is what the router advertises to guests, which have their addresses by DHCPv6: pods are configured by the agent and listen to none. It is
// repeated, for a guest does not ask again when its default route expires.
func advertisement(mtu int) map[string]string {
	ra := map[string]string{"address_mode": "dhcpv6_stateful", "send_periodic": "true", "max_interval": "900", "min_interval": "300", "router_preference": "MEDIUM"}
	if mtu != 0 {
		ra["mtu"] = strconv.Itoa(mtu)
	}
	return ra
}

// switchRows are those that a Subnet and the join network have in common.
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

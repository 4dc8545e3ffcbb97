package topology

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// SwitchRows are a logical switch and its connection to the router.
type SwitchRows struct {
	Switch     *nbdb.LogicalSwitch
	RouterPort *nbdb.LogicalRouterPort
	Uplink     *nbdb.LogicalSwitchPort
	// DHCPv4 and DHCPv6 are what OVN answers the guests of VMs with; nil if there is no such family.
	DHCPv4, DHCPv6 *nbdb.DHCPOptions
	// Inside are the policies that keep traffic for the switch's own addresses from leaving through a node.
	Inside []*nbdb.LogicalRouterPolicy
}

// DHCP is what guests are told besides their addresses and the router.
type DHCP struct {
	// MTU in bytes, 0 if that is not known yet.
	MTU int
	// Servers are the name servers of either family, Search the domains that names are looked for in.
	Servers []netip.Addr
	Search  []string
	// Lease is for how long an IPv4 address is theirs without asking again, in seconds.
	Lease int
}

// Subnet returns the rows of a Subnet.
func Subnet(name string, spec ipam.Spec, dhcp DHCP) SwitchRows {
	owner := ownedBy(ident.OwnerSubnet, name)
	rows := switchRows(ident.SubnetSwitch(name), spec, owner)
	for i, c := range spec.CIDRs {
		options := &nbdb.DHCPOptions{Cidr: c.String(), ExternalIDs: withFamily(owner, c.Addr())}
		if c.Addr().Is6() {
			rows.RouterPort.Ipv6RaConfigs = advertisement(dhcp.MTU)
			rows.DHCPv6, options.Options = options, dhcp.v6(rows.RouterPort.MAC)
		} else {
			rows.DHCPv4, options.Options = options, dhcp.v4(rows.RouterPort.MAC, spec.Gateways[i])
		}
	}
	return rows
}

// v6 are the options of DHCPv6 (ovn-nb(5)). One that is empty is to be absent. OVN writes whatever domain_search has as one label (pinctrl.c, compose_out_dhcpv6_opts; 23.03 too): that is right of one domain without a dot
// alone, and of others guests would have a name that nobody has.
func (d DHCP) v6(mac string) map[string]string {
	options := map[string]string{"server_id": mac, "dns_server": d.servers(netip.Addr.Is6), "domain_search": ""}
	if len(d.Search) == 1 && !strings.Contains(d.Search[0], ".") {
		options["domain_search"] = quoted(d.Search)
	}
	return options
}

// v4 are those of DHCPv4. The server is the router, as DHCPv6's is.
func (d DHCP) v4(mac string, router netip.Addr) map[string]string {
	options := map[string]string{
		"server_id": router.String(), "server_mac": mac, "router": router.String(), "lease_time": strconv.Itoa(d.Lease),
		"dns_server": d.servers(netip.Addr.Is4), "domain_search_list": quoted(d.Search), "mtu": "",
	}
	if d.MTU != 0 {
		options["mtu"] = strconv.Itoa(d.MTU)
	}
	return options
}

// servers are the name servers of a family as a set of OVN's.
func (d DHCP) servers(family func(netip.Addr) bool) string {
	var out []string
	for _, s := range d.Servers {
		if family(s) {
			out = append(out, s.String())
		}
	}
	if out == nil {
		return ""
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// quoted is a list of domains as a string of OVN's. Names of domains have no character that would have to be escaped.
func quoted(domains []string) string {
	if len(domains) == 0 {
		return ""
	}
	return strconv.Quote(strings.Join(domains, ","))
}

// ForSecondNetworks are the rows of a Subnet in which guests have their second NICs alone: its router is the one that they take last, and over IPv4 not at all. Their default route is that of the pod
// network, and what they answer there by another router is dropped by port security.
func (r SwitchRows) ForSecondNetworks() SwitchRows {
	if r.RouterPort.Ipv6RaConfigs != nil {
		r.RouterPort.Ipv6RaConfigs["router_preference"] = "LOW"
	}
	if r.DHCPv4 != nil {
		r.DHCPv4.Options["router"] = ""
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

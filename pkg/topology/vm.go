package topology

import (
	"net/netip"
	"slices"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// VMPort is what makes the port of a VM's interface.
type VMPort struct {
	// Namespace and Name are the VM's, Network that of the interface.
	Namespace, Name, Network string
	// UID and Subnet are the Port's.
	UID, Subnet string
	MAC         v1alpha1.MAC
	IPs         []netip.Prefix
	// Allowed are addresses and ranges besides IPs that the VM may send from.
	Allowed  []string
	Security v1alpha1.PortSecurity
	// DHCPv4 and DHCPv6 are the UUIDs of the rows with the Subnet's options, empty if OVN is not to answer.
	DHCPv4, DHCPv6 string
}

// VM returns the port of a VM's interface. It has no options: who may claim it is for package migration to say.
func VM(p VMPort) *nbdb.LogicalSwitchPort {
	addresses := Addresses(p.MAC, p.IPs)
	lsp := &nbdb.LogicalSwitchPort{
		Name:      string(ident.VMPort(p.Namespace, p.Name, p.Network)),
		Addresses: []string{addresses},
		ExternalIDs: map[string]string{
			ident.OwnerKey:     ident.OwnerVM,
			ident.KeyNamespace: p.Namespace,
			ident.KeyName:      p.Name,
			ident.KeyUID:       p.UID,
			ident.KeySubnet:    p.Subnet,
		},
	}
	if p.DHCPv4 != "" {
		lsp.Dhcpv4Options = &p.DHCPv4
	}
	if p.DHCPv6 != "" {
		lsp.Dhcpv6Options = &p.DHCPv6
	}
	if p.Security == v1alpha1.PortSecurityOff {
		lsp.Addresses = append(lsp.Addresses, "unknown") // what it bridges has addresses that nobody told us
		return lsp
	}
	security := addresses
	if slices.ContainsFunc(p.IPs, func(ip netip.Prefix) bool { return ip.Addr().Is6() }) {
		security += " " + linkLocal
	}
	for _, a := range p.Allowed {
		security += " " + a
	}
	lsp.PortSecurity = []string{security}
	return lsp
}

// Unclaimed are the options of a VM's port that nobody may claim yet. With requested-chassis absent, any leftover iface-id would claim it.
func Unclaimed() map[string]string {
	return map[string]string{ident.OptionRequestedChassis: string(ident.NoChassis)}
}

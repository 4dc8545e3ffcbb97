package topology

import (
	"net/netip"
	"strings"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// linkLocal is what a VM with IPv6 may send from besides its own addresses: guests choose privacy link-local addresses, and without them their router
// solicitations die. A pod's kernel is told to make its link-local address of the MAC, which OVN allows by itself where a port has IPv6 (ovn-nb(5), port_security):
// nobody but a VM can then take the gateway's link-local address, and in a Subnet without IPv6 there is none at all.
const linkLocal = "fe80::/64"

// Pod returns the port of a pod's interface on a network. Only chassis may claim it, and only for the pod of this UID.
func Pod(namespace, pod, network string, chassis ident.ChassisName, id v1alpha1.Identity) *nbdb.LogicalSwitchPort {
	addresses := Addresses(id.MAC, id.IPs)
	return &nbdb.LogicalSwitchPort{
		Name:         string(ident.PodPort(namespace, pod, network)),
		Addresses:    []string{addresses},
		PortSecurity: []string{addresses},
		Options: map[string]string{
			ident.OptionRequestedChassis: string(chassis),
			ident.OptionIfaceIDVer:       id.PodUID,
		},
		ExternalIDs: map[string]string{
			ident.OwnerKey:     ident.OwnerPod,
			ident.KeyNamespace: namespace,
			ident.KeyName:      pod,
			ident.KeyUID:       id.PodUID,
			ident.KeySubnet:    id.Subnet,
		},
	}
}

// Addresses is what a port's addresses column says: the MAC and the IP addresses in one string.
func Addresses(mac v1alpha1.MAC, ips []netip.Prefix) string {
	var b strings.Builder
	b.WriteString(mac.String())
	for _, ip := range ips {
		b.WriteString(" " + ip.Addr().String())
	}
	return b.String()
}

// ParseAddresses are the IP addresses that a port's addresses column says.
func ParseAddresses(column []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range column {
		for word := range strings.FieldsSeq(text) {
			if ip, err := netip.ParseAddr(word); err == nil { // else the MAC, or "unknown"
				out = append(out, ip)
			}
		}
	}
	return out
}

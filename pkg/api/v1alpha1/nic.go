package v1alpha1

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// NIC is one of a pod's interfaces besides the first, on a second network. It gives the pod no default route.
//
// +kubebuilder:object:generate=false
type NIC struct {
	// Interface is the link's name in the pod.
	Interface string `json:"interface"`
	// Network is what the interface is on: "NAMESPACE/NAME" of a NetworkAttachmentDefinition; of a launcher the network's name in its VMI.
	Network string `json:"network"`
	// The others are as those of Identity.
	Subnet   string         `json:"subnet"`
	IPs      []netip.Prefix `json:"ips"`
	MAC      MAC            `json:"mac"`
	Gateways []netip.Addr   `json:"gateways"`
	MTU      int            `json:"mtu"`
	// Activation is that of Attach, for this interface of a launcher.
	Activation Activation `json:"activation,omitempty"`
}

// NICOf is the interface that an Identity describes, whatever others it has.
func NICOf(link, network string, id Identity) NIC {
	return NIC{Interface: link, Network: network, Subnet: id.Subnet, IPs: id.IPs, MAC: id.MAC, Gateways: id.Gateways, MTU: id.MTU}
}

// NIC is the pod's interface of that name besides the first; ok is false if it has none.
func (id Identity) NIC(link string) (nic NIC, ok bool) {
	i := slices.IndexFunc(id.NICs, func(n NIC) bool { return n.Interface == link })
	if i < 0 {
		return NIC{}, false
	}
	return id.NICs[i], true
}

// Of is the same pod with nic for its only interface.
func (id Identity) Of(nic NIC) Identity {
	id.Subnet, id.IPs, id.MAC, id.Gateways, id.MTU, id.NICs = nic.Subnet, nic.IPs, nic.MAC, nic.Gateways, nic.MTU, nil
	if id.Attach != nil {
		attach := *id.Attach
		attach.Activation = nic.Activation
		id.Attach = &attach
	}
	return id
}

// checkNICs holds the rules for the interfaces besides the first.
func checkNICs(nics []NIC) error {
	for i, n := range nics {
		if !ident.ValidInterface(n.Interface) || n.Interface == ident.FirstInterface || n.Interface == ident.DefaultNetwork || n.Network == "" {
			return fmt.Errorf("nics: interface %q on network %q: want a name of its own, and a network", n.Interface, n.Network)
		}
		if slices.ContainsFunc(nics[:i], func(o NIC) bool { return o.Interface == n.Interface }) {
			return fmt.Errorf("nics: two interfaces are named %s", n.Interface)
		}
		if err := checkAttachment(n.IPs, n.Gateways, n.MAC); err != nil {
			return fmt.Errorf("nics: %s: %w", n.Interface, err)
		}
		if !MTUInBounds(n.MTU) {
			return fmt.Errorf("nics: %s: mtu %d is not between %d and %d", n.Interface, n.MTU, MinMTU, MaxMTU)
		}
	}
	return nil
}

package topology

import (
	"strings"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// linkLocal is what every port may send from besides its own addresses: guests choose privacy link-local addresses, and without them their router
// solicitations die.
const linkLocal = "fe80::/64"

// Pod returns the port of a pod's interface on a network. Only chassis may claim it, and only for the pod of this UID.
func Pod(namespace, pod, network string, chassis ident.ChassisName, id v1alpha1.Identity) *nbdb.LogicalSwitchPort {
	addrs := []string{id.MAC.String()}
	for _, ip := range id.IPs {
		addrs = append(addrs, ip.Addr().String())
	}
	addresses := strings.Join(addrs, " ")
	return &nbdb.LogicalSwitchPort{
		Name:         string(ident.PodPort(namespace, pod, network)),
		Addresses:    []string{addresses},
		PortSecurity: []string{addresses + " " + linkLocal},
		Options: map[string]string{
			"requested-chassis": string(chassis),
			"iface-id-ver":      id.PodUID,
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

// Package ident names things. Every OVN row that Godwit writes gets its name from a function in this package, and every identity that crosses
// a package border has a type from it, so that a chassis is never mistaken for a port.
//
// OVN names may hold any character. Kubernetes names never hold a slash; a slash therefore separates the parts of a row name, which makes
// the names unambiguous and lets them be parsed back.
package ident

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
)

type (
	// ChassisName is the name of an SB Chassis row: the node's name, which the agent writes as system-id.
	ChassisName string
	// PortName is the name of an NB Logical_Switch_Port, the logical_port of its SB Port_Binding, and the iface-id of the OVS Interface.
	PortName string
	// SwitchName is the name of an NB Logical_Switch.
	SwitchName string
	// RouterName is the name of an NB Logical_Router.
	RouterName string
	// LoadBalancerName is the name of an NB Load_Balancer.
	LoadBalancerName string
	// RouterPortName is the name of an NB Logical_Router_Port.
	RouterPortName string
)

// NoChassis is the chassis that a port requests when no pod may carry it. A node of this name is refused. With requested-chassis absent, any
// leftover iface-id would claim the port.
const NoChassis ChassisName = "godwit-none"

// DefaultNetwork is the network that every pod is attached to: one logical router and the switches of its Subnets.
const DefaultNetwork = "default"

// GatewayInterface is the OVS internal port through which a node reaches the overlay.
const GatewayInterface = "ovn0"

// IntegrationBridge is the OVS bridge that ovn-controller programs.
const IntegrationBridge = "br-int"

// Router is the logical router of a network.
func Router(network string) RouterName { return RouterName("network/" + network) }

// JoinSwitch is the logical switch between a network's router and its nodes.
func JoinSwitch(network string) SwitchName { return SwitchName("join/" + network) }

// SubnetSwitch is the logical switch of a Subnet.
func SubnetSwitch(subnet string) SwitchName { return SwitchName("subnet/" + subnet) }

// RouterPort is the router's port on a switch.
func RouterPort(ls SwitchName) RouterPortName { return RouterPortName("gateway/" + string(ls)) }

// SwitchRouterPort is the switch's port, of type router, that peers with RouterPort.
func SwitchRouterPort(ls SwitchName) PortName { return PortName("uplink/" + string(ls)) }

// NodePort is the port of a node's ovn0 on the join switch.
func NodePort(node string) PortName { return PortName("node/" + node) }

// PodPort is the port of one of a pod's interfaces. The default network's interface has network DefaultNetwork.
func PodPort(namespace, pod, network string) PortName {
	return PortName("pod/" + namespace + "/" + pod + "/" + network)
}

// ParsePodPort is the inverse of PodPort; ok is false for any other name.
func ParsePodPort(p PortName) (namespace, pod, network string, ok bool) {
	parts := strings.Split(string(p), "/")
	if len(parts) != 4 || parts[0] != "pod" {
		return "", "", "", false
	}
	return parts[1], parts[2], parts[3], true
}

// VMPort is the port of one of a VM's interfaces, whichever launcher pod carries it. A VMI has its VM's name; one that belongs to no VM its own.
func VMPort(namespace, vm, network string) PortName {
	return PortName("vm/" + namespace + "/" + vm + "/" + network)
}

// ParseVMPort is the inverse of VMPort; ok is false for any other name.
func ParseVMPort(p PortName) (namespace, vm, network string, ok bool) {
	parts := strings.Split(string(p), "/")
	if len(parts) != 4 || parts[0] != "vm" {
		return "", "", "", false
	}
	return parts[1], parts[2], parts[3], true
}

// IsVMPort says whether a port is one that VMPort names.
func IsVMPort(p PortName) bool { return strings.HasPrefix(string(p), "vm/") }

// AnchorSet is the address set of one family, ip4 or ip6, of the VMs that leave the cluster through a node. Not every name of a node can be a part of its name, which OVN's
// expressions use (ovn-sb(5)).
func AnchorSet(node, family string) string {
	sum := sha256.Sum256([]byte(node))
	return "godwit_anchor_" + hex.EncodeToString(sum[:16]) + "_" + family
}

// HostSet is the address set of one family of what is in the cluster, and is no pod: the nodes and the API server.
func HostSet(family string) string { return "godwit_hosts_" + family }

// ElsewhereSet is the address set of one family of the ranges of Subnets whose pods do not leave the cluster through their own nodes.
func ElsewhereSet(family string) string { return "godwit_elsewhere_" + family }

// MAC derives a port's MAC address from its first IP address: 0a:67 (locally administered, unicast) and the last four bytes of the address. That is unique wherever the
// address is, if it is of IPv4. Of IPv6 two addresses may have these bytes in common: see SpareMAC.
func MAC(addr netip.Addr) net.HardwareAddr {
	b := addr.AsSlice()
	mac := net.HardwareAddr{0x0a, 0x67, 0, 0, 0, 0}
	copy(mac[2:], b[len(b)-4:])
	return mac
}

// SpareMAC is the n-th MAC address, from 1 on, that a port may have instead of MAC's: 0a:69 and four bytes of a hash of the whole address. It is in no reserved range: whoever
// uses it has to find out that nobody has it.
func SpareMAC(addr netip.Addr, n int) net.HardwareAddr {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(addr.AsSlice(), uint64(n)))
	return append(net.HardwareAddr{0x0a, 0x69}, sum[:4]...)
}

// Spare says whether an address is one that SpareMAC could make.
func Spare(mac net.HardwareAddr) bool { return len(mac) == 6 && mac[0] == 0x0a && mac[1] == 0x69 }

// Derived says whether an address is one that MAC or GatewayMAC could make.
func Derived(mac net.HardwareAddr) bool {
	return len(mac) == 6 && mac[0] == 0x0a && (mac[1] == 0x67 || mac[1] == 0x68)
}

// GatewayMAC is the MAC address of the router's port on a switch: the same on every chassis, whatever node a guest is on.
func GatewayMAC(ls SwitchName) net.HardwareAddr {
	// FNV-1a; the name is the only input, so the address never changes while the switch exists.
	h := uint32(2166136261)
	for _, c := range []byte(ls) {
		h = (h ^ uint32(c)) * 16777619
	}
	mac := net.HardwareAddr{0x0a, 0x68, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(mac[2:], h)
	return mac
}

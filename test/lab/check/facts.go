// Package check compares what the parts of a cluster say of its pods' ports: the API server, OVN's northbound and southbound databases, Open vSwitch on each
// node, and each node's kernel. It is pure: whoever calls it collects the facts.
package check

import (
	"net/netip"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Facts are what the parts say, at about the same time.
type Facts struct {
	Pods []Pod
	// VMs are the Ports of the API, one for each interface of a VM.
	VMs   []VM
	Ports []Port
	// Bindings and Chassis are from the southbound database.
	Bindings []Binding
	Chassis  []string
	Nodes    []Node
	// Policies has the same Ports.
	Policies Policies
}

// Pod is what the API server says of a pod that has a network of its own.
type Pod struct {
	Namespace, Name, UID, Node string
	// Running: it has an address and runs, and has not been asked to end. Finished: its containers have ended for good. A pod that is neither is starting or
	// ending, and may be anywhere in between.
	Running, Finished bool
	// IPs are those of its status; Identity is nil without the annotation. Others are those of its interfaces on second networks.
	IPs      []netip.Addr
	Identity *Identity
	Others   []Identity
	// IdentityError says what is wrong with the annotation.
	IdentityError string
}

// VM is what the API server says of a VM's interface.
type VM struct {
	// Port is the name of the API object, as namespace/name; UID is its own.
	Port, UID string
	// Row is the Logical_Switch_Port that it should have.
	Row ident.PortName
	// Ready: it has its addresses and its row.
	Ready bool
	// Node is where KubeVirt says that the VM runs, empty for nowhere.
	Node string
	// Addresses is the first entry of the row's column addresses.
	Addresses string
}

// Identity is what the annotation says that a comparison needs.
type Identity struct {
	PodUID string
	IPs    []netip.Addr
	// Addresses is the first entry of the port's column addresses that follows from it.
	Addresses string
	// Row is the Logical_Switch_Port of the pod's interface, Version what iface-id-ver says of it: the pod's own, or for a launcher its VM's.
	Row     ident.PortName
	Version string
}

// Port is a northbound Logical_Switch_Port.
type Port struct {
	Name             ident.PortName
	Type             string
	Addresses        []string
	RequestedChassis string
	// ActivationStrategy is empty but during a migration.
	ActivationStrategy string
	// UID is that of the pod or Port that it was made for, RowUUID the row's own.
	UID, RowUUID string
	// Moved is when a VM's port was last given to one chassis after it had been on two, in RFC 3339, or empty.
	Moved string
}

// Binding is a southbound Port_Binding.
type Binding struct {
	Port ident.PortName
	Type string
	// Chassis is the name of the one that has claimed it, or empty.
	Chassis string
	Up      bool
}

// Node is what a node says, or of one that does not run, only that it exists.
type Node struct {
	Name string
	// Runs says whether Interfaces and Links are known.
	Runs       bool
	Interfaces []Interface
	Links      []Link
}

// Interface is an Open vSwitch Interface.
type Interface struct {
	Name string
	// IfaceID and IfaceIDVer are what it claims to be; empty for one that belongs to nothing in OVN.
	IfaceID    ident.PortName
	IfaceIDVer string
	// Ofport is positive for an interface that works.
	Ofport int
	Error  string
}

// Link is a network interface in the node's own namespace.
type Link struct {
	Name string
	// Veth says that it is one end of a veth.
	Veth bool
}

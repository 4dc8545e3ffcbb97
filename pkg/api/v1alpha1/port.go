package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Kinds of a PortTarget.
const (
	KindVirtualMachine         = "VirtualMachine"
	KindVirtualMachineInstance = "VirtualMachineInstance"
)

// PortTarget says whose interface a Port is. While no VM uses the Port, the Port may be given to another.
//
// +kubebuilder:validation:XValidation:rule="has(self.network) == has(oldSelf.network) && (!has(self.network) || self.network == oldSelf.network)",message="target.network cannot be changed: create another Port"
type PortTarget struct {
	// Kind is VirtualMachine, or VirtualMachineInstance for one that belongs to no VM.
	// +kubebuilder:validation:Enum=VirtualMachine;VirtualMachineInstance
	Kind string `json:"kind"`
	// Name of the VM or VMI, in the Port's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`
	// Network that the interface is on: "default" is the pod network, another the name of one of the VM's networks.
	// +default="default"
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_-]{1,63}$`
	// +optional
	Network string `json:"network,omitempty"`
}

// PortSecurity says whether a port may send frames from addresses that are not its own.
type PortSecurity string

// Values of PortSecurity.
const (
	PortSecurityOn  PortSecurity = "On"
	PortSecurityOff PortSecurity = "Off"
)

// ReclaimPolicy says what becomes of a Port whose VM is deleted.
type ReclaimPolicy string

// Values of ReclaimPolicy.
const (
	ReclaimDelete ReclaimPolicy = "Delete"
	ReclaimRetain ReclaimPolicy = "Retain"
)

// PortSpec is what a VM's interface shall be. Godwit makes a Port for a VM that has none. What cannot be changed can be neither added nor removed: rules of the
// fields themselves are not asked then.
//
// +kubebuilder:validation:XValidation:rule="has(self.subnet) == has(oldSelf.subnet)",message="subnet cannot be added or removed: create another Port"
// +kubebuilder:validation:XValidation:rule="has(self.ips) == has(oldSelf.ips)",message="ips cannot be added or removed: create another Port"
type PortSpec struct {
	Target PortTarget `json:"target"`

	// Subnet from which the addresses are. The one of the namespace if left out.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="subnet cannot be changed: create another Port"
	Subnet string `json:"subnet,omitempty"`

	// IPs that the VM shall have, at most one per family; a family of the Subnet that is left out gets an address all the same.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a))",message="ips must be addresses without a prefix length, such as 10.244.0.7 or fd00:10:244::7"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="ips cannot be changed: create another Port"
	// +listType=atomic
	IPs []string `json:"ips,omitempty"`

	// MAC that the VM shall have. What the VM's own definition says goes first; without either it follows from the first address.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$`
	MAC string `json:"mac,omitempty"`

	// AllowedAddresses are further addresses and ranges that the VM may send from, besides its own: those of a floating address or of the containers in it. What a Subnet may give to
	// somebody is not allowed; the condition AllowedAddresses says so.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a) || isCIDR(a))",message="allowedAddresses must be addresses or ranges, such as 10.9.0.7 or fd00:9::/64"
	// +listType=set
	AllowedAddresses []string `json:"allowedAddresses,omitempty"`

	// PortSecurity Off lets the VM send from any MAC and IP address: for a VM that is itself a bridge or a router.
	// +optional
	// +default="On"
	// +kubebuilder:validation:Enum=On;Off
	PortSecurity PortSecurity `json:"portSecurity,omitempty"`

	// ReclaimPolicy Retain keeps the Port, with its addresses, when its VM is deleted: for the next VM of that name. Delete lets it go with the VM. If left out, a Port that Godwit
	// has made goes, and one that somebody made stays.
	// +optional
	// +kubebuilder:validation:Enum=Delete;Retain
	ReclaimPolicy ReclaimPolicy `json:"reclaimPolicy,omitempty"`
}

// PortPhase tells what becomes of a Port, for people to read.
type PortPhase string

// The phases of a Port.
const (
	// PortReserved: it has its addresses, and no VM runs that uses it.
	PortReserved PortPhase = "Reserved"
	// PortBound: its VM is started, and not in the network yet.
	PortBound PortPhase = "Bound"
	// PortAttached: its VM is in the network, on status.node.
	PortAttached PortPhase = "Attached"
	// PortMigrating: its VM moves away from status.node.
	PortMigrating PortPhase = "Migrating"
)

// ConditionAllowed is the type of the condition that a Port has, with status False, of whose allowedAddresses some are not allowed.
const ConditionAllowed = "AllowedAddresses"

// PortStatus is what a VM's interface is.
type PortStatus struct {
	// Phase for people to read; conditions say more.
	// +optional
	Phase PortPhase `json:"phase,omitempty"`
	// Subnet that the addresses are from.
	// +optional
	Subnet string `json:"subnet,omitempty"`
	// IPs that the port has, IPv4 first.
	// +optional
	// +listType=atomic
	IPs []string `json:"ips,omitempty"`
	// MAC that the port has.
	// +optional
	MAC string `json:"mac,omitempty"`
	// Node whose chassis carries the port; during a migration the one that the VM moves away from.
	// +optional
	Node string `json:"node,omitempty"`
	// EgressNode is the node through which the VM leaves the cluster, and by which its connections to the outside live: the one on which it started, wherever it has moved to
	// since. Empty if the VM does not run, or if its Subnet has another egress than mode Node.
	// +optional
	EgressNode string `json:"egressNode,omitempty"`
	// Conditions: Ready says whether the port has its addresses and its row in the network, AllowedAddresses, where it is there, which of them are not allowed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Port is the identity of a VM's network interface for the VM's whole life: its addresses, and one logical port, whichever pod and node carry it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="self.spec.target == oldSelf.spec.target || !has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase == 'Reserved'",message="target cannot be changed while a VM uses the Port: stop the VM, and wait for phase Reserved"
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.target.name`
// +kubebuilder:printcolumn:name="IP",type=string,JSONPath=`.status.ips[0]`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="IPs",type=string,JSONPath=`.status.ips`,priority=1
// +kubebuilder:printcolumn:name="MAC",type=string,JSONPath=`.status.mac`,priority=1
// +kubebuilder:printcolumn:name="Subnet",type=string,JSONPath=`.status.subnet`,priority=1
// +kubebuilder:printcolumn:name="Egress Node",type=string,JSONPath=`.status.egressNode`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`,priority=1
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Port struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PortSpec `json:"spec"`
	// +optional
	Status PortStatus `json:"status,omitempty"`
}

// PortList is a list of Ports.
//
// +kubebuilder:object:root=true
type PortList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Port `json:"items"`
}

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EgressMode says how pods leave the cluster.
type EgressMode string

// Values of EgressMode.
const (
	// EgressNode: through the node that they run on, a VM through the node on which it started, and under its address.
	EgressNode EgressMode = "Node"
	// EgressGateway: all through one node, which is chosen from some.
	EgressGateway EgressMode = "Gateway"
	// EgressNone: not at all.
	EgressNone EgressMode = "None"
)

// Egress is how the pods of a Subnet reach what is neither a pod nor a node.
//
// +kubebuilder:validation:XValidation:rule="(has(self.mode) && self.mode == 'Gateway') == has(self.nodeSelector)",message="mode Gateway needs a nodeSelector, the other modes have none"
// +kubebuilder:validation:XValidation:rule="!has(self.addresses) || has(self.mode) && self.mode == 'Gateway'",message="addresses are for mode Gateway"
type Egress struct {
	// Mode is Node, Gateway or None.
	// +optional
	// +default="Node"
	// +kubebuilder:validation:Enum=Node;Gateway;None
	Mode EgressMode `json:"mode,omitempty"`

	// NodeSelector selects the nodes that can be the gateway. One of them is, until it fails or is drained; then another is, and stays it.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// Addresses under which the pods are seen outside, at most one per family. The gateway node has them on its underlay while it is the gateway. Of a family without
	// one it is the gateway node's own.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a))",message="addresses must be IP addresses without a prefix length, such as 192.0.2.7"
	// +kubebuilder:validation:XValidation:rule="self.size() < 2 || !self.all(a, isIP(a)) || ip(self[0]).family() != ip(self[1]).family()",message="two addresses must be of different families"
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
}

// DefaultLease is for how long a guest has its IPv4 address without asking again, in seconds. The address is its own for longer.
const DefaultLease = 24 * 3600

// SubnetDHCP is what OVN's DHCPv4 and DHCPv6 say. Guests with the bridge or the masquerade binding have their IPv4 from KubeVirt's server, which says what the launcher has.
type SubnetDHCP struct {
	// NameServers of either family. Without them guests are told of none.
	// +optional
	// +kubebuilder:validation:MaxItems=6
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a))",message="nameServers must be IP addresses, such as 10.96.0.10"
	// +listType=atomic
	NameServers []string `json:"nameServers,omitempty"`

	// SearchDomains are those in which names without a dot are looked for, by DHCPv4. OVN's DHCPv6 can say one domain without a dot, and no others.
	// +optional
	// +kubebuilder:validation:MaxItems=6
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +listType=atomic
	SearchDomains []string `json:"searchDomains,omitempty"`

	// LeaseSeconds is for how long a guest has its IPv4 address without asking again: a day if left out. It is the VM's for as long as its Port is there.
	// +optional
	// +kubebuilder:validation:Minimum=60
	// +kubebuilder:validation:Maximum=31536000
	LeaseSeconds int `json:"leaseSeconds,omitempty"`
}

// SubnetSpec is what an administrator asks for.
//
// +kubebuilder:validation:XValidation:rule="self.cidrs == oldSelf.cidrs",message="cidrs cannot be changed: pods have addresses in them; create another Subnet"
// +kubebuilder:validation:XValidation:rule="has(self.gateways) == has(oldSelf.gateways) && (!has(self.gateways) || self.gateways == oldSelf.gateways)",message="gateways cannot be changed: they are the pods' default routes; create another Subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.gateways) || self.gateways.all(g, isIP(g) && self.cidrs.exists(c, isCIDR(c) && cidr(c).containsIP(ip(g))))",message="every gateway must be an address in one of cidrs"
// +kubebuilder:validation:XValidation:rule="!has(self.gateways) || self.gateways.size() == self.cidrs.size()",message="gateways must name one address for each of cidrs, or be left out"
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || !has(self.egress.addresses) || self.egress.addresses.all(a, !isIP(a) || self.cidrs.exists(c, isCIDR(c) && cidr(c).ip().family() == ip(a).family()) && !self.cidrs.exists(c, isCIDR(c) && cidr(c).containsIP(ip(a))))",message="every address of egress must be of a family of cidrs, and outside of them"
// +kubebuilder:validation:XValidation:rule="!has(self.excludeIPs) || self.excludeIPs.all(e, e.split('-').all(a, self.cidrs.exists(c, isCIDR(c) && isIP(a) && cidr(c).containsIP(ip(a)))))",message="every excludeIPs entry must be an address or FIRST-LAST in one of cidrs"
type SubnetSpec struct {
	// CIDRs are the address ranges, at most one per family.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(c, isCIDR(c) && cidr(c) == cidr(c).masked())",message="cidrs must be network addresses with a prefix length, such as 10.244.0.0/16 or fd00:10:244::/64"
	// +kubebuilder:validation:XValidation:rule="self.size() < 2 || !self.all(c, isCIDR(c)) || cidr(self[0]).ip().family() != cidr(self[1]).ip().family()",message="two cidrs must be of different families"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || (cidr(c).ip().family() == 4 ? cidr(c).prefixLength() <= 30 && cidr(c).prefixLength() >= 8 : cidr(c).prefixLength() <= 126 && cidr(c).prefixLength() >= 16))",message="an IPv4 cidr must be between /8 and /30, an IPv6 cidr between /16 and /126"
	// +listType=atomic
	CIDRs []string `json:"cidrs"`

	// Gateways are the addresses of the logical router in the Subnet, one for each of cidrs. The first address of each range if left out. They cannot be changed.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=39
	// +listType=atomic
	Gateways []string `json:"gateways,omitempty"`

	// ExcludeIPs are addresses, or ranges written FIRST-LAST, that are not given to a pod. One that has such an address already keeps it.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=79
	// +listType=atomic
	ExcludeIPs []string `json:"excludeIPs,omitempty"`

	// NamespaceSelector selects the namespaces whose pods get their addresses here. A namespace that several Subnets select gets the one whose name
	// sorts first; one that none selects gets the default Subnet. Without a selector the Subnet takes no namespace.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// SecondNetworksOnly: pods and VMs of these namespaces are in the Subnet by second networks alone, and their interfaces on the pod network in another.
	// +optional
	SecondNetworksOnly bool `json:"secondNetworksOnly,omitempty"`

	// MTU in bytes of the pods' interfaces. The smallest that all nodes can carry if left out.
	// +optional
	// +kubebuilder:validation:Minimum=1280
	// +kubebuilder:validation:Maximum=65535
	MTU int `json:"mtu,omitempty"`

	// DHCP is what the guests of VMs are told by OVN besides their addresses, their router and the MTU.
	// +optional
	DHCP *SubnetDHCP `json:"dhcp,omitempty"`

	// Egress is how pods leave the cluster; mode Node if left out. Pods, Services, the nodes' own addresses and the API server are within it.
	// +optional
	Egress *Egress `json:"egress,omitempty"`
}

// SubnetStatus is what the controller observes.
type SubnetStatus struct {
	// UsedIPs is the number of addresses that pods have, of the scarcer family.
	// +optional
	// +default=0
	UsedIPs int64 `json:"usedIPs"`
	// AvailableIPs is the number of addresses that can still be given out, of the scarcer family.
	// +optional
	// +default=0
	AvailableIPs int64 `json:"availableIPs"`
	// EgressNode is the node through which all pods leave the cluster, in mode Gateway.
	// +optional
	EgressNode string `json:"egressNode,omitempty"`
	// Conditions: Ready says whether the Subnet is in the network and hands out addresses; Egress, in mode Gateway, whether its pods can leave the cluster.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Subnet is a range of pod addresses: one logical switch that spans all nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.cidrs`
// +kubebuilder:printcolumn:name="Used",type=integer,JSONPath=`.status.usedIPs`
// +kubebuilder:printcolumn:name="Available",type=integer,JSONPath=`.status.availableIPs`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Egress",type=string,JSONPath=`.spec.egress.mode`
// +kubebuilder:printcolumn:name="Egress Node",type=string,JSONPath=`.status.egressNode`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Egress Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Egress")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Subnet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SubnetSpec `json:"spec"`
	// +optional
	Status SubnetStatus `json:"status,omitempty"`
}

// SubnetList is a list of Subnets.
//
// +kubebuilder:object:root=true
type SubnetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Subnet `json:"items"`
}

// ConditionReady is the type of the condition that Subnets and Ports have.
const ConditionReady = "Ready"

// ConditionEgress is the type of the condition that Subnets with a gateway have.
const ConditionEgress = "Egress"

// Reasons for which a Subnet's spec is refused.
const (
	// ReasonInvalid: a part of it is wrong. Where it was right before, that is in force.
	ReasonInvalid = "Invalid"
	// ReasonTargetTaken: another Port has the interface that a Port is for.
	ReasonTargetTaken = "TargetTaken"
	// ReasonOverlaps: its ranges, which never change, are not its own. It is not in the network.
	ReasonOverlaps = "Overlaps"
)

// InNetwork reports whether the Subnet's ranges have been found to be its own. It stays so whatever is wrong with the rest of the spec.
func (s *Subnet) InNetwork() bool {
	ready := meta.FindStatusCondition(s.Status.Conditions, ConditionReady)
	return ready != nil && ready.Reason != ReasonOverlaps
}

// EgressMode is how the pods leave the cluster.
func (s *SubnetSpec) EgressMode() EgressMode {
	if s.Egress == nil || s.Egress.Mode == "" {
		return EgressNode
	}
	return s.Egress.Mode
}

package v1alpha1

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
)

// Annotation keys and finalizers. The ValidatingAdmissionPolicy in yamls/ names those that users may not write; TestAdmissionPolicyCoversAnnotations holds them
// together.
const (
	// IdentityAnnotation, on a Pod, is an Identity as JSON. Only godwit-controller writes it.
	IdentityAnnotation = "godwit.dev/identity"
	// JoinAnnotation, on a Node, is a Join as JSON. Only godwit-controller writes it.
	JoinAnnotation = "godwit.dev/join"
	// MTUAnnotation, on a Node, is the largest MTU in bytes that a pod on the node can use. Its own godwit-agent writes it.
	MTUAnnotation = "godwit.dev/mtu"
	// SubnetAnnotation, IPsAnnotation and MACAnnotation are what a pod asks for, or, on a VM's template, what the Port of its NIC on the pod network does when Godwit makes
	// it: fields of PortSpec, the addresses separated by commas. Users write them.
	SubnetAnnotation = "godwit.dev/subnet"
	IPsAnnotation    = "godwit.dev/ips"
	MACAnnotation    = "godwit.dev/mac"
	// ReclaimAnnotation, on a VM's template, is the ReclaimPolicy of the Port that Godwit makes.
	ReclaimAnnotation = "godwit.dev/reclaim-policy"
	// SwitchoverAnnotation, on a VMI or a VM's template and so on its launchers, is "false" for a VM whose ports are not to be opened on the source's signal. Users write it.
	SwitchoverAnnotation = "godwit.dev/switchover"
	// SubnetFinalizer keeps a Subnet until no pod has an address in it.
	SubnetFinalizer = "godwit.dev/subnet"
	// PortFinalizer keeps a Port until no VM uses it and its northbound row is gone.
	PortFinalizer = "godwit.dev/port"
)

// The bounds of an MTU in bytes, of nodes, Subnets and pods. IPv6 does not work with less than MinMTU (RFC 8200, section 5); no packet is longer than MaxMTU. The markers
// of SubnetSpec.MTU repeat them, which TestMTUBounds holds.
const (
	MinMTU = 1280
	MaxMTU = 65535
)

// MTUInBounds says whether an MTU in bytes is one that a link may have.
func MTUInBounds(mtu int) bool { return mtu >= MinMTU && mtu <= MaxMTU }

// Identity is what a pod's network interface is: the controller decides it when the pod is created, the agent plugs it in.
// Its addresses are not proof of anything: OVN's port security, written by the controller, decides what the pod may send.
//
// +kubebuilder:object:generate=false
type Identity struct {
	// PodUID is the UID of the pod that the identity is for. An identity with another UID is of an earlier pod of the same name.
	PodUID string `json:"podUID"`
	// Subnet is the name of the Subnet that the addresses are from.
	Subnet string `json:"subnet"`
	// IPs are the addresses with their Subnet's prefix length, at most one per family, IPv4 first.
	IPs []netip.Prefix `json:"ips"`
	// MAC is the address of the pod's interface.
	MAC MAC `json:"mac"`
	// Gateways are the default routers, one per family of IPs, in the same order.
	Gateways []netip.Addr `json:"gateways"`
	// MTU is the interface's MTU in bytes.
	MTU int `json:"mtu"`
	// VMI is set when the pod is a VM's launcher: its interface is the VM's port, which outlives the pod. Nil for any other pod.
	VMI *Instance `json:"vmi,omitempty"`
	// Attach says that the launcher may attach now, and where. Without it a launcher waits: its VM runs elsewhere, or its chassis was not asked for yet.
	// Nil for any other pod, which needs no permission.
	Attach *Attach `json:"attach,omitempty"`
	// NICs are the pod's interfaces on second networks, in the order in which the pod lists them.
	NICs []NIC `json:"nics,omitempty"`
}

// Instance names a VirtualMachineInstance.
//
// +kubebuilder:object:generate=false
type Instance struct {
	Name string `json:"name"`
	// UID is what the port's iface-id-ver says: a launcher of an earlier VMI of the name cannot claim the port.
	UID string `json:"uid"`
}

// Attach is the permission for one launcher to attach: the port's row asks for its chassis.
//
// +kubebuilder:object:generate=false
type Attach struct {
	// Chassis is the only one on which the permission counts.
	Chassis string `json:"chassis"`
	// Migration is the UID of the migration for which the pod was made, empty for a VM's first launcher.
	Migration string `json:"migration,omitempty"`
	// Activation says what OVN makes of the port on this chassis before the VM runs there.
	Activation Activation `json:"activation,omitempty"`
}

// Activation is how a port begins on a chassis.
//
// +kubebuilder:object:generate=false
type Activation string

const (
	// ActivationNone is a port that works as soon as OVN has installed it. So it is with a VM's first launcher.
	ActivationNone Activation = ""
	// ActivationRARP is one that OVN installs and blocks, until a RARP comes from it (activation-strategy=rarp). So it is with a migration's target.
	ActivationRARP Activation = "rarp"
	// ActivationLater is one that OVN installs when the source has given it up. Only the benchmark asks for that, to compare with.
	ActivationLater Activation = "later"
)

// Join is a node's place on the join switch, between its host network and the overlay.
//
// +kubebuilder:object:generate=false
type Join struct {
	// IPs are the addresses of the node's ovn0 with the join network's prefix length, at most one per family, IPv4 first.
	IPs []netip.Prefix `json:"ips"`
	// MAC is the address of the node's ovn0.
	MAC MAC `json:"mac"`
	// Gateways are the router's addresses on the join switch, one per family of IPs, in the same order.
	Gateways []netip.Addr `json:"gateways"`
	// Clients are a second address of each family of IPs, in the same order and with the same prefix length: the node source-NATs those clients to them that it passes
	// on to pods. Empty where an older controller wrote the annotation, or the join network is full.
	Clients []netip.Prefix `json:"clients,omitempty"`
}

// MAC is a net.HardwareAddr that reads and writes its usual text form in JSON.
//
// +kubebuilder:object:generate=false
type MAC net.HardwareAddr

// String returns the colon-separated form.
func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Only 48-bit addresses are accepted.
func (m *MAC) UnmarshalText(b []byte) error {
	hw, err := net.ParseMAC(string(b))
	if err != nil {
		return err
	}
	if len(hw) != 6 {
		return fmt.Errorf("MAC address %q has %d bytes, want 6", b, len(hw))
	}
	*m = MAC(hw)
	return nil
}

// ParseIdentity reads and checks the value of IdentityAnnotation. The error says which field is wrong.
func ParseIdentity(s string) (Identity, error) {
	var id Identity
	if err := json.Unmarshal([]byte(s), &id); err != nil {
		return Identity{}, fmt.Errorf("annotation %s: %w", IdentityAnnotation, err)
	}
	if id.PodUID == "" {
		return Identity{}, fmt.Errorf("annotation %s: podUID is empty", IdentityAnnotation)
	}
	if !MTUInBounds(id.MTU) {
		return Identity{}, fmt.Errorf("annotation %s: mtu %d is not between %d and %d", IdentityAnnotation, id.MTU, MinMTU, MaxMTU)
	}
	if err := checkAttachment(id.IPs, id.Gateways, id.MAC); err != nil {
		return Identity{}, fmt.Errorf("annotation %s: %w", IdentityAnnotation, err)
	}
	if id.VMI != nil && (id.VMI.Name == "" || id.VMI.UID == "") {
		return Identity{}, fmt.Errorf("annotation %s: vmi %+v: want its name and UID", IdentityAnnotation, *id.VMI)
	}
	if id.Attach != nil && (id.VMI == nil || id.Attach.Chassis == "") {
		return Identity{}, fmt.Errorf("annotation %s: attach %+v: want a chassis, and a vmi beside it", IdentityAnnotation, *id.Attach)
	}
	if err := checkNICs(id.NICs); err != nil {
		return Identity{}, fmt.Errorf("annotation %s: %w", IdentityAnnotation, err)
	}
	return id, nil
}

// ParseJoin reads and checks the value of JoinAnnotation. The error says which field is wrong.
func ParseJoin(s string) (Join, error) {
	var j Join
	if err := json.Unmarshal([]byte(s), &j); err != nil {
		return Join{}, fmt.Errorf("annotation %s: %w", JoinAnnotation, err)
	}
	if err := checkAttachment(j.IPs, j.Gateways, j.MAC); err != nil {
		return Join{}, fmt.Errorf("annotation %s: %w", JoinAnnotation, err)
	}
	if err := checkClients(j); err != nil {
		return Join{}, fmt.Errorf("annotation %s: %w", JoinAnnotation, err)
	}
	return j, nil
}

func checkClients(j Join) error {
	if len(j.Clients) == 0 {
		return nil
	}
	if len(j.Clients) != len(j.IPs) {
		return fmt.Errorf("%d clients for %d ips: want as many, or none", len(j.Clients), len(j.IPs))
	}
	for i, c := range j.Clients {
		if !c.IsValid() || c.Masked() != j.IPs[i].Masked() || c == j.IPs[i] || c.Addr() == j.Gateways[i] {
			return fmt.Errorf("clients %v: want another address of the network of %v than that and %v", c, j.IPs[i], j.Gateways[i])
		}
	}
	return nil
}

// checkAttachment holds the rules that Identity and Join share.
func checkAttachment(ips []netip.Prefix, gateways []netip.Addr, mac MAC) error {
	if len(ips) == 0 || len(ips) > 2 || len(ips) == 2 && ips[0].Addr().Is4() == ips[1].Addr().Is4() {
		return fmt.Errorf("ips %v: want one address per family", ips)
	}
	if len(gateways) != len(ips) {
		return fmt.Errorf("%d gateways for %d ips: want as many", len(gateways), len(ips))
	}
	for i, ip := range ips {
		if !ip.IsValid() || !gateways[i].IsValid() || !ip.Masked().Contains(gateways[i]) {
			return fmt.Errorf("gateway %v is not in the network of %v", gateways[i], ip)
		}
	}
	if len(mac) != 6 || mac[0]&1 != 0 {
		return fmt.Errorf("mac %q is not a unicast address", mac)
	}
	return nil
}

// Text is the annotation's value.
func (id Identity) Text() string { return text(id) }

// Text is the annotation's value.
func (j Join) Text() string { return text(j) }

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "" // cannot happen: the types above always encode
	}
	return string(b)
}

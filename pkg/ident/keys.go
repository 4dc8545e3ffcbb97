package ident

// Keys of NB Logical_Switch_Port options. northd copies them into the Port_Binding (ovn-nb(5)).
const (
	// OptionRequestedChassis names the chassis that may claim the port, or the main one and an additional one, separated by a comma.
	OptionRequestedChassis = "requested-chassis"
	// OptionActivationStrategy is what opens the port on an additional chassis: v1alpha1.ActivationRARP, or absent.
	OptionActivationStrategy = "activation-strategy"
	// OptionIfaceIDVer is what KeyIfaceIDVer must say on the Interface that claims the port.
	OptionIfaceIDVer = KeyIfaceIDVer
	// OptionRouterPort is the router's port that a port of type router peers with.
	OptionRouterPort = "router-port"
)

// BindingActivated is the key of SB Port_Binding options with the additional chassis on which the port was opened, separated by commas. northd writes it (ovn-sb(5)).
const BindingActivated = "additional-chassis-activated"

// Keys of external_ids of an OVS Interface by which ovn-controller knows whose it is (ovn-controller(8)).
const (
	// KeyIfaceID is the PortName.
	KeyIfaceID = "iface-id"
	// KeyIfaceIDVer is the UID of what the interface is plugged in for: a pod, or a VMI. An interface of an earlier one of the name claims nothing.
	KeyIfaceIDVer = "iface-id-ver"
)

// OwnerKey is the external_ids key that marks an NB row as Godwit's; its value is the owner's kind.
const OwnerKey = "godwit.dev/owner"

// Values of OwnerKey.
const (
	OwnerPod     = "pod"
	OwnerNode    = "node"
	OwnerSubnet  = "subnet"
	OwnerNetwork = "network"
	// OwnerVM: KeyNamespace and KeyName name the VM, or the VMI that has none.
	OwnerVM = "vm"
	// OwnerPolicy: an ACL's KeyNamespace and KeyName name the NetworkPolicy. Port groups and address sets are shared by policies, and name none.
	OwnerPolicy = "policy"
	// OwnerService: KeyNamespace and KeyName name the Service. What Services share has OwnerService too, and names none.
	OwnerService = "service"
)

// external_ids keys of the NB rows that Godwit owns. KeyName is the owner's name; KeyFamily, ip4 or ip6, tells apart the rows that one owner has for each family.
const (
	KeyFamily    = "godwit.dev/family"
	KeyNamespace = "godwit.dev/namespace"
	KeyName      = "godwit.dev/name"
	KeyUID       = "godwit.dev/uid"
	KeySubnet    = "godwit.dev/subnet"
	// KeyEgressNode is the node through which a VM, by its port, or a Subnet, by its policy, leaves the cluster.
	KeyEgressNode = "godwit.dev/egress-node"
	// KeyRule tells apart the ACLs, and the router's policies, of one owner; KeyContent says, for people, what a port group or an address set has in it.
	KeyRule    = "godwit.dev/rule"
	KeyContent = "godwit.dev/content"
)

// external_ids keys of a VM's port: the stamp of the migration that last asked for it, its UID, source and target. It stays after the migration's end, as the
// record of it, until the next one or until the VM stops.
const (
	KeyMigration       = "godwit.dev/migration"
	KeyMigrationSource = "godwit.dev/migration-source"
	KeyMigrationTarget = "godwit.dev/migration-target"
	// KeyMoved is when the port was last given to one chassis after it had been on two, in RFC 3339.
	KeyMoved = "godwit.dev/moved"
)

package policy

// Priorities of ACLs, in both directions. OVN 23.03 has no ACL tiers: what belongs to one kind of policy has a band of its own, and all bands are here. OVN
// takes 0 to 32767; what it adds by itself (established connections, neighbour discovery) comes before all of these.
const (
	// PriorityExempt is what no policy can forbid: a node's probes, DHCP.
	PriorityExempt = 31000
	// PriorityHandoverLow to PriorityHandoverHigh are reserved for the connections that a VM takes along and that an admin policy would cut off: it judges a packet from
	// the middle of a permitted connection as wrongly as others do.
	PriorityHandoverLow  = 30000
	PriorityHandoverHigh = 30999
	// PriorityAdminLow to PriorityAdminHigh are reserved for AdminNetworkPolicy.
	PriorityAdminLow  = 20000
	PriorityAdminHigh = 29999
	// PriorityAllow is what a NetworkPolicy permits; PriorityLoggedAllow what one permits that logs it, lest another with the same match permit it silently.
	PriorityLoggedAllow = 10001
	PriorityAllow       = 10000
	// PriorityHandover admits a connection that a VM takes along, PriorityHandedOver carries it on. They come after what permits: a connection that a policy admits by
	// itself, though it is seen from the middle, gets no label, and ends when the policy does.
	PriorityHandedOver = 9101
	PriorityHandover   = 9100
	// PriorityLoggedDrop drops and logs, for a policy whose annotation asks for it; PriorityDrop drops what comes to or from isolated pods.
	PriorityLoggedDrop = 9001
	PriorityDrop       = 9000
	// PriorityBaselineLow to PriorityBaselineHigh are reserved for BaselineAdminNetworkPolicy, which judges what no NetworkPolicy isolates.
	PriorityBaselineLow  = 1000
	PriorityBaselineHigh = 4999
)

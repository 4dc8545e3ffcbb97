package v1alpha1

import (
	"strings"
	"time"
)

// Agents of nodes that a Subnet's egress selects renew a Lease each, by which the controller knows that the node works.
const (
	// EgressLeaseLabel is on all of these Leases, with any value.
	EgressLeaseLabel = "godwit.dev/egress"
	// EgressAddressesAnnotation on such a Lease is the egress addresses that the node has, sorted and separated by commas.
	EgressAddressesAnnotation = "godwit.dev/egress-addresses"
	// EgressBeat is between two renewals.
	EgressBeat = time.Second
	// EgressPatience is after how long without one the node has failed; the agent by itself gives up what is the gateway's alone.
	EgressPatience = 3 * time.Second
	// EgressRestart is the patience with an agent that says, in its last renewal, that it ends: mostly it is about to be restarted.
	EgressRestart = 15 * time.Second

	egressLease = "egress."
)

// EgressLease is the name of a node's Lease.
func EgressLease(node string) string { return egressLease + node }

// EgressLeaseNode is the node whose Lease has the name; ok is false for any other.
func EgressLeaseNode(lease string) (node string, ok bool) {
	return strings.CutPrefix(lease, egressLease)
}

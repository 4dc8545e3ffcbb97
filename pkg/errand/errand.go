// Package errand is what `kubectl ovn` has a node's agent do, by a subcommand of godwit-agent in the agent's container: what it is told, how the two keep in touch, and what
// comes back.
package errand

import (
	"net/netip"
	"time"
)

// How `kubectl ovn tcpdump` and `godwit-agent tcpdump` keep in touch. Nobody tells a program in a container that who has started it is gone, by a connection that nobody has
// closed: so it is told at intervals that somebody is there still, on its standard input.
const (
	// Beat is how often it is told.
	Beat = 10 * time.Second
	// Silence is after how long without a word it ends. The end of its standard input ends it at once.
	Silence = time.Minute
	// ExitGone is its exit code when the port's link is gone: the pod has ended, or the VM has left.
	ExitGone = 75
)

// Echo is how one packet went that `godwit-agent echo` has sent to an address, and that is to come back.
type Echo struct {
	To netip.Addr `json:"to"`
	// Size of the IP packet, in bytes.
	Size int `json:"size"`
	// Microseconds until the answer came.
	Microseconds int64 `json:"microseconds,omitempty"`
	// Error is why none came, empty if one did.
	Error string `json:"error,omitempty"`
}

// Answered says whether it came back.
func (e Echo) Answered() bool { return e.Error == "" }

// Fitness is what `godwit-agent fitness` says of what a migration finds on its node.
type Fitness struct {
	// Controller is the release of the ovn-controller that runs, as it says itself: 23.03.1. Error is why nobody knows, empty if somebody does.
	Controller string `json:"controller,omitempty"`
	Error      string `json:"error,omitempty"`
	// Handoff: the agent hands the connections of VMs over, and takes them. HandoffError is why nobody knows, empty if somebody does.
	Handoff      bool   `json:"handoff,omitempty"`
	HandoffError string `json:"handoffError,omitempty"`
}

package conntrack

import (
	"errors"
	"fmt"
)

var (
	// errMessage is that of a message of the wire form, or of the kernel's, that is not as it should be.
	errMessage = errors.New("malformed message")
	// errEntry is that of an entry whose form is as it should be, and whose parts contradict each other.
	errEntry = fmt.Errorf("%w: parts of an entry contradict each other", errMessage)
	errZone  = errors.New("connection tracking zone 0 is the host's own: want the number of a port's or a router's zone")
	// errProtocol is that of an entry whose protocol is not moved.
	errProtocol = errors.New("protocol is none of TCP, UDP, SCTP, ICMP, ICMPv6")
)

// Reason says why an entry was not moved.
type Reason string

// Reasons of entries that were not moved.
const (
	// ReasonProtocol: neither TCP, UDP, SCTP nor ICMP, or a zone for each direction.
	ReasonProtocol Reason = "Protocol"
	// ReasonLimit: there were more entries than were asked for.
	ReasonLimit Reason = "Limit"
	// ReasonSequences: a helper has shifted the connection's sequence numbers.
	ReasonSequences Reason = "Sequences"
	// ReasonMalformed: its parts contradict each other.
	ReasonMalformed Reason = "Malformed"
	// ReasonTableFull: the target's table has no room but what other connections need.
	ReasonTableFull Reason = "TableFull"
	// ReasonConflict: another connection has its place, or wrong entries came back as often as they were deleted.
	ReasonConflict Reason = "Conflict"
	// ReasonKernel: the kernel refused it. Result.Why has the first of these.
	ReasonKernel Reason = "Kernel"
)

package conntrack

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Zone is the number of a connection tracking zone, which means something in one network namespace only.
type Zone uint16

// Protocol is the number of an IP protocol.
type Protocol uint8

// Protocols whose entries are moved.
const (
	ICMP   Protocol = unix.IPPROTO_ICMP
	TCP    Protocol = unix.IPPROTO_TCP
	UDP    Protocol = unix.IPPROTO_UDP
	ICMPv6 Protocol = unix.IPPROTO_ICMPV6
	SCTP   Protocol = unix.IPPROTO_SCTP
)

func (p Protocol) icmp() bool { return p == ICMP || p == ICMPv6 }

func (p Protocol) known() bool { return p.icmp() || p == TCP || p == UDP || p == SCTP }

// Status are bits of enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
type Status uint32

// Bits of Status that are moved.
const (
	// SeenReply: both ends have sent something.
	SeenReply Status = 1 << 1
	// Assured: it is not dropped early when the table is full.
	Assured Status = 1 << 2
)

// Other bits of Status.
const (
	confirmed      Status = 1 << 3
	sequenceAdjust Status = 1 << 6
	offload        Status = 1 << 14
	hwOffload      Status = 1 << 15
)

// Tuple is one direction of a connection. Fields that its protocol does not have are zero.
type Tuple struct {
	// Src and Dst are both IPv4 or both IPv6.
	Src, Dst netip.Addr
	// SrcPort and DstPort are those of TCP, UDP and SCTP.
	SrcPort, DstPort uint16
	// ID, Type and Code are those of ICMP.
	ID         uint16
	Type, Code uint8
}

// TCPState is what an entry knows of TCP. The first of a pair is of the original direction.
type TCPState struct {
	// State is one of nl.TCP_CONNTRACK_….
	State uint8
	// Scales are the window scales, Flags IP_CT_TCP_FLAG_… (linux/netfilter/nf_conntrack_tcp.h).
	Scales, Flags [2]uint8
}

// SCTPState is what an entry knows of SCTP. The first of a pair is of the original direction.
type SCTPState struct {
	// State is one of enum sctp_conntrack (linux/netfilter/nf_conntrack_sctp.h).
	State uint8
	// Tags are the verification tags.
	Tags [2]uint32
}

// Labels are 128 bits, as the kernel of a host has them in memory.
type Labels [16]byte

// Entry is a connection as one zone knows it. Entries can be compared.
type Entry struct {
	// Zone is 0 where it is not known: in what Decode returns.
	Zone     Zone
	Protocol Protocol
	// Reply is what a reply is like when it comes: with NAT not the inverse of Orig.
	Orig, Reply Tuple
	Status      Status
	// Timeout is for how long the entry lives if nothing comes any more, in whole seconds.
	Timeout time.Duration
	Mark    uint32
	Labels  Labels
	// TCP and SCTP are zero for other protocols.
	TCP  TCPState
	SCTP SCTPState
}

// Flags of TCP's that an entry is moved with; the others belong to what cannot be moved.
const (
	tcpWindowScale      = 0x01
	tcpSACK             = 0x02
	tcpCloseInit        = 0x04
	tcpLiberal          = 0x08
	tcpSimultaneousOpen = 0x80

	tcpMoved = tcpWindowScale | tcpSACK | tcpCloseInit | tcpSimultaneousOpen
)

const (
	// tcpStates is the number of TCP's states.
	tcpStates = nl.TCP_CONNTRACK_MAX
	// SCTP has one state more before Linux 6.3, of associations of which only heartbeats were seen.
	sctpEstablished    = 4
	sctpHeartbeatSent  = 8
	sctpHeartbeatAcked = 9
)

const (
	// offloadedTimeout is that of an entry that hardware or a flow table keeps alive, whose own the kernel does not tell. The first packet on the target makes it the usual one.
	offloadedTimeout = 5 * time.Minute
	// leastTimeout: with 0 an entry would be gone at once.
	leastTimeout = time.Second
)

// String is the entry as conntrack(8) would put it, nearly.
func (e Entry) String() string {
	return fmt.Sprintf("protocol %d, %s, reply %s, zone %d, status %#x, mark %#x, labels %x, %s, TCP %+v, SCTP %+v",
		e.Protocol, e.Orig.text(e.Protocol), e.Reply.text(e.Protocol), e.Zone, uint32(e.Status), e.Mark, e.Labels, e.Timeout, e.TCP, e.SCTP)
}

func (t Tuple) text(p Protocol) string {
	if p.icmp() {
		return fmt.Sprintf("%s → %s type %d code %d id %d", t.Src, t.Dst, t.Type, t.Code, t.ID)
	}
	return fmt.Sprintf("%s → %s", netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort))
}

// Of reports whether one of the addresses is an end of the connection, in either direction: with NAT also one that only the reply has. It finds a VM's entries in zones that ports
// share, those of hairpins and of routers.
func (e Entry) Of(addrs ...netip.Addr) bool {
	for _, a := range []netip.Addr{e.Orig.Src, e.Orig.Dst, e.Reply.Src, e.Reply.Dst} {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	return false
}

// icmpReplies are ICMP's types of which the kernel tracks the replies (nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c).
var icmpReplies = map[Protocol]map[uint8]uint8{
	ICMP:   {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
	ICMPv6: {128: 129, 129: 128, 139: 140, 140: 139},
}

// inverse is what replies without NAT are like; false: a message of ICMP that has none.
func (t Tuple) inverse(p Protocol) (Tuple, bool) {
	out := Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort, ID: t.ID, Type: t.Type, Code: t.Code}
	if !p.icmp() {
		return out, true
	}
	var ok bool
	out.Type, ok = icmpReplies[p][t.Type]
	return out, ok
}

// natted reports whether addresses or ports are changed on the way. The entry has passed check.
func (e Entry) natted() bool {
	plain, _ := e.Orig.inverse(e.Protocol)
	return plain != e.Reply
}

// check returns an error unless the parts of an entry fit together, as far as the kernel would not look itself.
func (e Entry) check() error {
	if !e.Protocol.known() {
		return fmt.Errorf("protocol %d: %w", e.Protocol, errProtocol)
	}
	v6 := e.Orig.Src.Is6()
	for _, a := range []netip.Addr{e.Orig.Src, e.Orig.Dst, e.Reply.Src, e.Reply.Dst} {
		if !a.IsValid() || a.Is6() != v6 || a.Zone() != "" {
			return fmt.Errorf("%w: address %s of an entry (%s): want four of one family", errEntry, a, e)
		}
	}
	if e.Protocol.icmp() && v6 != (e.Protocol == ICMPv6) {
		return fmt.Errorf("%w: ICMP of the other family: %s", errEntry, e)
	}
	for _, t := range []Tuple{e.Orig, e.Reply} {
		if _, ok := t.inverse(e.Protocol); !ok {
			return fmt.Errorf("%w: ICMP type %d has no replies: %s", errEntry, t.Type, e)
		}
		ports, icmp := t.SrcPort != 0 || t.DstPort != 0, t.ID != 0 || t.Type != 0 || t.Code != 0
		if e.Protocol.icmp() && ports || !e.Protocol.icmp() && icmp {
			return fmt.Errorf("%w: ports of ICMP, or an ID of another protocol: %s", errEntry, e)
		}
	}
	if e.TCP.State >= tcpStates || e.SCTP.State > sctpHeartbeatAcked {
		return fmt.Errorf("%w: unknown state of TCP or SCTP: %s", errEntry, e)
	}
	return nil
}

// moved is the entry as another zone is to have it; reason is empty then.
func (e Entry) moved(to Zone) (out Entry, reason Reason) {
	switch err := e.check(); {
	case err != nil && !e.Protocol.known():
		return e, ReasonProtocol
	case err != nil:
		return e, ReasonMalformed
	case e.Status&sequenceAdjust != 0:
		return e, ReasonSequences
	}
	offloaded := e.Status&(offload|hwOffload) != 0
	out = e
	out.Zone, out.Status = to, e.Status&(SeenReply|Assured)|confirmed
	if offloaded && out.Timeout == 0 {
		out.Timeout = offloadedTimeout
	}
	out.Timeout = max(out.Timeout.Truncate(time.Second), leastTimeout)
	if e.Protocol == TCP {
		if offloaded && out.TCP.State == nl.TCP_CONNTRACK_NONE {
			out.TCP.State = nl.TCP_CONNTRACK_ESTABLISHED // no other is offloaded
		}
		for i, f := range e.TCP.Flags {
			out.TCP.Flags[i] = f&tcpMoved | tcpLiberal
		}
	}
	if e.SCTP.State > sctpHeartbeatSent {
		out.SCTP.State = sctpEstablished
	}
	return out, ""
}

package conntrack

import (
	"net/netip"
	"time"

	"pgregory.net/rapid"
)

// family is IPv4 or IPv6.
type family struct {
	icmp  Protocol
	types []uint8
	addr  func(last byte) netip.Addr
}

// families are both. The first type of ICMP is that of an echo request.
var families = []family{
	{ICMP, []uint8{8, 0, 13}, func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }},
	{ICMPv6, []uint8{128, 129}, func(last byte) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: last}) }},
}

// drawAddr draws from few addresses, so that connections meet.
func (f family) drawAddr(t *rapid.T) netip.Addr {
	return f.addr(rapid.ByteRange(1, 4).Draw(t, "address"))
}

func (f family) drawTuple(t *rapid.T, p Protocol) Tuple {
	out := Tuple{Src: f.drawAddr(t), Dst: f.drawAddr(t)}
	port := rapid.Uint16Range(1, 4)
	if p.icmp() {
		out.ID, out.Type, out.Code = port.Draw(t, "id"), rapid.SampledFrom(f.types).Draw(t, "type"), rapid.Byte().Draw(t, "code")
	} else {
		out.SrcPort, out.DstPort = port.Draw(t, "source port"), port.Draw(t, "destination port")
	}
	return out
}

// drawEntry draws one as a dump may have it, of zone 1 or 2.
func drawEntry(t *rapid.T) Entry {
	f := families[rapid.IntRange(0, 1).Draw(t, "family")]
	e := Entry{
		Zone:     Zone(rapid.Uint16Range(1, 2).Draw(t, "zone")),
		Protocol: rapid.SampledFrom([]Protocol{TCP, UDP, SCTP, f.icmp}).Draw(t, "protocol"),
		Status:   Status(rapid.SampledFrom([]uint32{0x8, 0xa, 0xe, 0x88, 0x8e, 0x1ae}).Draw(t, "status")),
		Timeout:  time.Duration(rapid.Uint32().Draw(t, "timeout")) * time.Second,
		Mark:     rapid.Uint32().Draw(t, "mark"),
	}
	e.Orig = f.drawTuple(t, e.Protocol)
	e.Reply, _ = e.Orig.inverse(e.Protocol)
	if rapid.Bool().Draw(t, "NAT of the destination") {
		e.Reply.Src, e.Reply.SrcPort = f.drawAddr(t), e.Reply.SrcPort*2
	}
	if rapid.Bool().Draw(t, "NAT of the source") {
		e.Reply.Dst, e.Reply.DstPort, e.Reply.ID = f.drawAddr(t), e.Reply.DstPort*2, e.Reply.ID*2
	}
	if rapid.Bool().Draw(t, "labels") {
		copy(e.Labels[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "label"))
	}
	switch e.Protocol {
	case TCP:
		e.TCP = TCPState{State: rapid.Uint8Range(0, 9).Draw(t, "state"), Scales: [2]uint8{rapid.Uint8Range(0, 14).Draw(t, "scale"), 7}, Flags: [2]uint8{rapid.Byte().Draw(t, "flags"), 0x2b}}
	case SCTP:
		e.SCTP = SCTPState{State: rapid.Uint8Range(0, 9).Draw(t, "state"), Tags: [2]uint32{rapid.Uint32().Draw(t, "tag"), 1}}
	}
	return e
}

// asKernel is a message of the kernel's about an entry.
func asKernel(f found) []byte {
	w := writer{f.family(), 0, 0, 0}
	w.tuple(1, f.Protocol, f.Orig)
	w.tuple(2, f.Protocol, f.Reply)
	w.u16(18, uint16(f.Zone))
	w.state(f.Entry, f.Status)
	w.u32(12, f.id)
	if f.Labels != (Labels{}) {
		w.bytes(22, f.Labels[:])
	}
	return w
}

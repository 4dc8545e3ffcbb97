package conntrack

import (
	"encoding/binary"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes that package nl has no names for (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaNATSource      = 6
	ctaNATDestination = 13
	ctaTupleZone      = 3
	ctaProtoICMPID    = 4
	ctaProtoICMPv6ID  = 7
	ctaNATv4MinIP     = 1
	ctaNATv4MaxIP     = 2
	ctaNATProto       = 3
	ctaNATv6MinIP     = 4
	ctaNATv6MaxIP     = 5
	ctaNATPortMin     = 1
	ctaNATPortMax     = 2
	ctaSCTPState      = 1
	ctaSCTPTagOrig    = 2
	ctaSCTPTagReply   = 3
)

// ICMP's ID is followed by its type and code, in both families.
const (
	afterIDType = 1
	afterIDCode = 2
)

// request is one message to the kernel.
type request struct {
	// command is one of nl.IPCTNL_MSG_CT_…, flags are those of netlink's header.
	command uint8
	flags   uint16
	family  uint8
	attrs   writer
}

// append appends the request as netlink has it.
func (r request) append(b []byte, seq uint32) []byte {
	length := unix.SizeofNlMsghdr + nl.SizeofNfgenmsg + len(r.attrs)
	b = binary.NativeEndian.AppendUint32(b, uint32(length))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|uint16(r.command))
	b = binary.NativeEndian.AppendUint16(b, r.flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, r.family, nl.NFNETLINK_V0, 0, 0) // struct nfgenmsg
	return append(b, r.attrs...)                   // a multiple of four bytes
}

func (e Entry) family() uint8 {
	if e.Orig.Src.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// dumpZone asks for all entries of a zone; before Linux 6.8 the kernel answers with those of all zones.
func dumpZone(zone Zone) request {
	r := request{command: nl.IPCTNL_MSG_CT_GET, flags: unix.NLM_F_DUMP, family: unix.AF_UNSPEC}
	r.attrs.u16(nl.CTA_ZONE, uint16(zone))
	return r
}

// getBy asks for the entry that has a tuple in either direction.
func getBy(e Entry, t Tuple) request {
	r := request{command: nl.IPCTNL_MSG_CT_GET, flags: unix.NLM_F_ACK, family: e.family()}
	r.attrs.tuple(nl.CTA_TUPLE_ORIG, e.Protocol, t)
	r.attrs.u16(nl.CTA_ZONE, uint16(e.Zone))
	return r
}

// remove deletes this entry and none that has come in its place.
func remove(f found) request {
	r := getBy(f.Entry, f.Orig)
	r.command = nl.IPCTNL_MSG_CT_DELETE
	r.attrs.u32(nl.CTA_ID, f.id)
	return r
}

// create makes an entry where nothing has one of its tuples.
func create(e Entry) request {
	r := request{command: nl.IPCTNL_MSG_CT_NEW, flags: unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL, family: e.family()}
	plain, _ := e.Orig.inverse(e.Protocol)
	r.attrs.tuple(nl.CTA_TUPLE_ORIG, e.Protocol, e.Orig)
	r.attrs.tuple(nl.CTA_TUPLE_REPLY, e.Protocol, plain)
	r.attrs.u16(nl.CTA_ZONE, uint16(e.Zone))
	if e.natted() {
		r.attrs.nat(e)
	}
	r.attrs.state(e, e.Status)
	if e.Labels != (Labels{}) {
		r.attrs.bytes(nl.CTA_LABELS, e.Labels[:])
	}
	return r
}

// update makes an entry that is there, with the same tuples, like another.
func update(have, want Entry) request {
	r := getBy(want, want.Orig)
	r.command = nl.IPCTNL_MSG_CT_NEW
	r.attrs.state(want, want.Status|have.Status) // what is set cannot be cleared
	if want.Labels != have.Labels {
		r.attrs.bytes(nl.CTA_LABELS, want.Labels[:])
	}
	return r
}

func (w *writer) tuple(kind uint16, p Protocol, t Tuple) {
	w.nest(kind, func() {
		w.nest(nl.CTA_TUPLE_IP, func() {
			src, dst := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
			if t.Src.Is6() {
				src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
			}
			w.bytes(src, t.Src.AsSlice())
			w.bytes(dst, t.Dst.AsSlice())
		})
		w.nest(nl.CTA_TUPLE_PROTO, func() {
			w.u8(nl.CTA_PROTO_NUM, uint8(p))
			switch {
			case p.icmp():
				id := uint16(ctaProtoICMPID)
				if p == ICMPv6 {
					id = ctaProtoICMPv6ID
				}
				w.u16(id, t.ID)
				w.u8(id+afterIDType, t.Type)
				w.u8(id+afterIDCode, t.Code)
			default:
				w.u16(nl.CTA_PROTO_SRC_PORT, t.SrcPort)
				w.u16(nl.CTA_PROTO_DST_PORT, t.DstPort)
			}
		})
	})
}

// nat says both sides of what is changed on the way, each by one address and one port, or ID: else the kernel would choose. One that stays is not changed by that.
func (w *writer) nat(e Entry) {
	minIP, maxIP := uint16(ctaNATv4MinIP), uint16(ctaNATv4MaxIP)
	if e.Orig.Src.Is6() {
		minIP, maxIP = ctaNATv6MinIP, ctaNATv6MaxIP
	}
	side := func(kind uint16, addr []byte, port uint16) {
		w.nest(kind, func() {
			w.bytes(minIP, addr)
			w.bytes(maxIP, addr)
			w.nest(ctaNATProto, func() {
				w.u16(ctaNATPortMin, port)
				w.u16(ctaNATPortMax, port)
			})
		})
	}
	from, to := e.Reply.SrcPort, e.Reply.DstPort
	if e.Protocol.icmp() {
		from, to = e.Orig.ID, e.Reply.ID // an ID is the source's
	}
	side(ctaNATDestination, e.Reply.Src.AsSlice(), from)
	side(ctaNATSource, e.Reply.Dst.AsSlice(), to)
}

func (w *writer) state(e Entry, status Status) {
	w.u32(nl.CTA_STATUS, uint32(status))
	w.u32(nl.CTA_TIMEOUT, uint32(e.Timeout/time.Second))
	w.u32(nl.CTA_MARK, e.Mark)
	switch e.Protocol {
	case TCP:
		const all = 0xff // the mask of flags: those that are not set are cleared
		w.nest(nl.CTA_PROTOINFO, func() {
			w.nest(nl.CTA_PROTOINFO_TCP, func() {
				w.u8(nl.CTA_PROTOINFO_TCP_STATE, e.TCP.State)
				for i := range e.TCP.Scales {
					w.u8(nl.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL+uint16(i), e.TCP.Scales[i])
					w.bytes(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL+uint16(i), []byte{e.TCP.Flags[i], all})
				}
			})
		})
	case SCTP:
		w.nest(nl.CTA_PROTOINFO, func() {
			w.nest(nl.CTA_PROTOINFO_SCTP, func() {
				w.u8(ctaSCTPState, e.SCTP.State)
				w.u32(ctaSCTPTagOrig, e.SCTP.Tags[0])
				w.u32(ctaSCTPTagReply, e.SCTP.Tags[1])
			})
		})
	}
}

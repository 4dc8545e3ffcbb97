package conntrack

import (
	"encoding/binary"
	"fmt"
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

// found is an entry of the kernel's, with the ID by which it is deleted and no other that has come in its place.
type found struct {
	Entry
	id uint32
}

// zoneOf is the zone of an entry in a message of the kernel's, without a look at the rest: most of what is dumped is of other zones.
func zoneOf(message []byte) (Zone, error) {
	var zone uint16
	err := entryAttributes(message, func(kind uint16, value []byte) error {
		if kind == nl.CTA_ZONE {
			return number(value, &zone)
		}
		return nil
	})
	return Zone(zone), err
}

// entryAttributes calls see with the attributes of a message about an entry, which begins with struct nfgenmsg.
func entryAttributes(message []byte, see func(kind uint16, value []byte) error) error {
	if len(message) < nl.SizeofNfgenmsg {
		return fmt.Errorf("%w: it has %d bytes", errMessage, len(message))
	}
	return attributes(message[nl.SizeofNfgenmsg:], see)
}

// parse reads a message about an entry: struct nfgenmsg and attributes. Attributes that are not known are passed over, as newer kernels may have some; the error wraps errProtocol
// where the entry is of a kind that is not moved, and errMessage where it is nothing that the kernel would say.
func parse(message []byte) (found, error) {
	var f found
	var zone uint16
	var orig, reply Protocol
	err := entryAttributes(message, func(kind uint16, value []byte) (err error) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			orig, err = parseTuple(value, &f.Orig)
		case nl.CTA_TUPLE_REPLY:
			reply, err = parseTuple(value, &f.Reply)
		case nl.CTA_STATUS:
			err = number(value, (*uint32)(&f.Status))
		case nl.CTA_TIMEOUT:
			var seconds uint32
			err = number(value, &seconds)
			f.Timeout = time.Duration(seconds) * time.Second
		case nl.CTA_MARK:
			err = number(value, &f.Mark)
		case nl.CTA_ZONE:
			err = number(value, &zone)
		case nl.CTA_ID:
			err = number(value, &f.id)
		case nl.CTA_LABELS:
			if len(value) != len(f.Labels) {
				return fmt.Errorf("%w: labels of %d bytes", errMessage, len(value))
			}
			copy(f.Labels[:], value)
		case nl.CTA_PROTOINFO:
			err = attributes(value, f.parseState)
		}
		return err
	})
	if err != nil {
		return found{}, err
	}
	if orig != reply || orig == 0 {
		return found{}, fmt.Errorf("%w: its tuples are of the protocols %d and %d, want two of one", errMessage, orig, reply)
	}
	f.Protocol, f.Zone = orig, Zone(zone)
	if f.Protocol != TCP {
		f.TCP = TCPState{}
	}
	if f.Protocol != SCTP {
		f.SCTP = SCTPState{}
	}
	return f, f.check()
}

func parseTuple(b []byte, t *Tuple) (Protocol, error) {
	var protocol Protocol
	err := attributes(b, func(kind uint16, value []byte) error {
		switch kind {
		case nl.CTA_TUPLE_IP:
			return attributes(value, func(kind uint16, value []byte) error {
				switch kind {
				case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
					return address(value, &t.Src)
				case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
					return address(value, &t.Dst)
				}
				return nil
			})
		case nl.CTA_TUPLE_PROTO:
			return attributes(value, func(kind uint16, value []byte) error {
				switch kind {
				case nl.CTA_PROTO_NUM:
					return number(value, (*uint8)(&protocol))
				case nl.CTA_PROTO_SRC_PORT:
					return number(value, &t.SrcPort)
				case nl.CTA_PROTO_DST_PORT:
					return number(value, &t.DstPort)
				case ctaProtoICMPID, ctaProtoICMPv6ID:
					return number(value, &t.ID)
				case ctaProtoICMPID + afterIDType, ctaProtoICMPv6ID + afterIDType:
					return number(value, &t.Type)
				case ctaProtoICMPID + afterIDCode, ctaProtoICMPv6ID + afterIDCode:
					return number(value, &t.Code)
				}
				return nil
			})
		case ctaTupleZone:
			return fmt.Errorf("zone of one direction: %w", errProtocol)
		}
		return nil
	})
	return protocol, err
}

func (f *found) parseState(kind uint16, value []byte) error {
	switch kind {
	case nl.CTA_PROTOINFO_TCP:
		return attributes(value, func(kind uint16, value []byte) error {
			switch kind {
			case nl.CTA_PROTOINFO_TCP_STATE:
				return number(value, &f.TCP.State)
			case nl.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, nl.CTA_PROTOINFO_TCP_WSCALE_REPLY:
				return number(value, &f.TCP.Scales[kind-nl.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL])
			case nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, nl.CTA_PROTOINFO_TCP_FLAGS_REPLY: // struct nf_ct_tcp_flags: flags, mask
				if len(value) != 2 {
					return fmt.Errorf("%w: flags of TCP with %d bytes", errMessage, len(value))
				}
				f.TCP.Flags[kind-nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL] = value[0]
			}
			return nil
		})
	case nl.CTA_PROTOINFO_SCTP:
		return attributes(value, func(kind uint16, value []byte) error {
			switch kind {
			case ctaSCTPState:
				return number(value, &f.SCTP.State)
			case ctaSCTPTagOrig, ctaSCTPTagReply:
				return number(value, &f.SCTP.Tags[kind-ctaSCTPTagOrig])
			}
			return nil
		})
	}
	return nil
}

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

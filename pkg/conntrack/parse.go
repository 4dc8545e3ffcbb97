package conntrack

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
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
// where the entry is of a kind that is not moved, errEntry where it is one that cannot be, and else errMessage: it is nothing that the kernel would say. Of the first two the entry is returned too, as far as it
// is known.
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
	if orig != reply || !f.Orig.Src.IsValid() { // 0 is a protocol as any other: the kernel tracks whatever somebody sends
		return found{}, fmt.Errorf("%w: its tuples are of the protocols %d and %d, want two of one, with addresses", errMessage, orig, reply)
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

package conntrack

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// MaxMessage is the greatest length in bytes of what Encode returns and Decode takes. A channel that carries 64 KiB has room for it in base64, and for a header of its own.
const MaxMessage = 45 << 10

// version is the first byte of a message. Another version is another form: a node that does not know it takes nothing.
const version = 1

// A message is the version, the number of entries (uint16) and the entries. All numbers are in network order. An entry is
//
//	flags, protocol     a byte each
//	status, timeout in seconds, mark     four bytes each
//	tuple of the original direction: source and destination, 4 or 16 bytes each; ports, or ICMP's ID, type and code, 4 bytes
//	tuple of the reply, with wireNAT; else it is the inverse
//	labels, 16 bytes, with wireLabels
//	TCP: state, scales, flags, 5 bytes     SCTP: state, tags, 9 bytes
//
// The zone is not part of it: it means nothing to who receives it.
const (
	wireIPv6   = 1
	wireNAT    = 2
	wireLabels = 4
	wireFlags  = wireIPv6 | wireNAT | wireLabels

	messageHeader = 3
	// longestEntry in bytes: IPv6, NAT, labels, SCTP.
	longestEntry = 2 + 3*4 + 2*(2*16+4) + 16 + 9
)

// Encode puts entries into messages of at most MaxMessage bytes each; without entries there is none. An entry that no dump has is an error.
func Encode(entries []Entry) ([][]byte, error) {
	var out [][]byte
	var b []byte
	n := 0
	end := func() {
		if n > 0 {
			binary.BigEndian.PutUint16(b[1:], uint16(n))
			out = append(out, b)
		}
		b, n = append(make([]byte, 0, MaxMessage), version, 0, 0), 0
	}
	end()
	for _, e := range entries {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("encode a connection: %w", err)
		}
		if len(b)+longestEntry > MaxMessage || n == math.MaxUint16 {
			end()
		}
		b, n = appendEntry(b, e), n+1
	}
	end()
	return out, nil
}

func appendEntry(b []byte, e Entry) []byte {
	var flags byte
	if e.Orig.Src.Is6() {
		flags |= wireIPv6
	}
	if e.natted() {
		flags |= wireNAT
	}
	if e.Labels != (Labels{}) {
		flags |= wireLabels
	}
	b = append(b, flags, byte(e.Protocol))
	b = binary.BigEndian.AppendUint32(b, uint32(e.Status))
	b = binary.BigEndian.AppendUint32(b, uint32(e.Timeout/time.Second))
	b = binary.BigEndian.AppendUint32(b, e.Mark)
	b = appendTuple(b, e.Protocol, e.Orig)
	if flags&wireNAT != 0 {
		b = appendTuple(b, e.Protocol, e.Reply)
	}
	if flags&wireLabels != 0 {
		b = append(b, e.Labels[:]...)
	}
	switch e.Protocol {
	case TCP:
		b = append(b, e.TCP.State, e.TCP.Scales[0], e.TCP.Scales[1], e.TCP.Flags[0], e.TCP.Flags[1])
	case SCTP:
		b = append(b, e.SCTP.State)
		b = binary.BigEndian.AppendUint32(b, e.SCTP.Tags[0])
		b = binary.BigEndian.AppendUint32(b, e.SCTP.Tags[1])
	}
	return b
}

func appendTuple(b []byte, p Protocol, t Tuple) []byte {
	b = append(append(b, t.Src.AsSlice()...), t.Dst.AsSlice()...)
	if p.icmp() {
		return append(binary.BigEndian.AppendUint16(b, t.ID), t.Type, t.Code)
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, t.SrcPort), t.DstPort)
}

// Decode reads a message of Encode's. It takes nothing on trust: a byte that is missing, left over, or not what Encode would write is an error. Whether the connections are those of
// who sends them is the caller's to judge (Entry.Of).
func Decode(message []byte) ([]Entry, error) {
	if len(message) < messageHeader || len(message) > MaxMessage {
		return nil, fmt.Errorf("%w: connections in %d bytes, want %d to %d", errMessage, len(message), messageHeader, MaxMessage)
	}
	if message[0] != version {
		return nil, fmt.Errorf("%w: connections in version %d, want %d", errMessage, message[0], version)
	}
	n := int(binary.BigEndian.Uint16(message[1:]))
	r := reader{b: message[messageHeader:]}
	var out []Entry
	for i := range n {
		e, err := r.entry()
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, n, err)
		}
		out = append(out, e)
	}
	if len(r.b) > 0 || n == 0 {
		return nil, fmt.Errorf("%w: %d connections, and %d bytes are left over", errMessage, n, len(r.b))
	}
	return out, nil
}

// reader reads from b. Once b is too short it returns zeros.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8   { return r.bytes(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }

func (r *reader) entry() (Entry, error) {
	var e Entry
	flags := r.u8()
	e.Protocol = Protocol(r.u8())
	if flags&^wireFlags != 0 || !e.Protocol.known() {
		return e, fmt.Errorf("%w: flags %#x, protocol %d", errMessage, flags, e.Protocol)
	}
	e.Status, e.Timeout, e.Mark = Status(r.u32()), time.Duration(r.u32())*time.Second, r.u32()
	e.Orig = r.tuple(flags, e.Protocol)
	e.Reply, _ = e.Orig.inverse(e.Protocol)
	plain := e.Reply
	if flags&wireNAT != 0 {
		e.Reply = r.tuple(flags, e.Protocol)
	}
	if flags&wireLabels != 0 {
		copy(e.Labels[:], r.bytes(len(e.Labels)))
	}
	switch e.Protocol {
	case TCP:
		e.TCP = TCPState{State: r.u8(), Scales: [2]uint8{r.u8(), r.u8()}, Flags: [2]uint8{r.u8(), r.u8()}}
	case SCTP:
		e.SCTP = SCTPState{State: r.u8(), Tags: [2]uint32{r.u32(), r.u32()}}
	}
	switch {
	case r.short:
		return e, fmt.Errorf("%w: it ends too early", errMessage)
	case flags&wireNAT != 0 && e.Reply == plain, flags&wireLabels != 0 && e.Labels == Labels{}:
		return e, fmt.Errorf("%w: flags %#x say what is not so", errMessage, flags)
	}
	return e, e.check()
}

func (r *reader) tuple(flags byte, p Protocol) Tuple {
	length := 4
	if flags&wireIPv6 != 0 {
		length = 16
	}
	var t Tuple
	t.Src, _ = netip.AddrFromSlice(r.bytes(length))
	t.Dst, _ = netip.AddrFromSlice(r.bytes(length))
	if p.icmp() {
		t.ID, t.Type, t.Code = r.u16(), r.u8(), r.u8()
	} else {
		t.SrcPort, t.DstPort = r.u16(), r.u16()
	}
	return t
}

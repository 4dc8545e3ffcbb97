package conntrack

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attrHeader is the length of struct nlattr. Its numbers are the host's; what attributes of ctnetlink hold is in network order.
const attrHeader = unix.SizeofNlAttr

// align rounds a length up as netlink does before the next message or attribute.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// attributes calls see with each attribute of b, in its order, and ends with the first error.
func attributes(b []byte, see func(kind uint16, value []byte) error) error {
	for len(b) > 0 {
		if len(b) < attrHeader {
			return fmt.Errorf("%w: %d bytes are left over after its attributes", errMessage, len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return fmt.Errorf("%w: an attribute says that it has %d bytes, of %d that are left", errMessage, n, len(b))
		}
		if err := see(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[attrHeader:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// number is an attribute's, in network order.
func number[T uint8 | uint16 | uint32](value []byte, into *T) error {
	if want := bits.Len32(uint32(^T(0))) / 8; len(value) != want {
		return fmt.Errorf("%w: a number has %d bytes, want %d", errMessage, len(value), want)
	}
	var n uint32
	for _, b := range value {
		n = n<<8 | uint32(b)
	}
	*into = T(n)
	return nil
}

// address is an attribute's, of IPv4 or IPv6.
func address(value []byte, into *netip.Addr) error {
	a, ok := netip.AddrFromSlice(value)
	if !ok {
		return fmt.Errorf("%w: an address has %d bytes", errMessage, len(value))
	}
	*into = a
	return nil
}

// writer writes attributes.
type writer []byte

func (w *writer) header(kind uint16, length int) {
	*w = binary.NativeEndian.AppendUint16(*w, uint16(attrHeader+length))
	*w = binary.NativeEndian.AppendUint16(*w, kind)
}

func (w *writer) bytes(kind uint16, value []byte) {
	w.header(kind, len(value))
	*w = append(*w, value...)
	*w = append(*w, make([]byte, align(len(value))-len(value))...)
}

func (w *writer) u8(kind uint16, v uint8) { w.bytes(kind, []byte{v}) }

func (w *writer) u16(kind uint16, v uint16) { w.bytes(kind, []byte{byte(v >> 8), byte(v)}) }

func (w *writer) u32(kind uint16, v uint32) { w.bytes(kind, binary.BigEndian.AppendUint32(nil, v)) }

// nest writes an attribute that has what fill writes.
func (w *writer) nest(kind uint16, fill func()) {
	at := len(*w)
	w.header(kind|nl.NLA_F_NESTED, 0)
	fill()
	binary.NativeEndian.PutUint16((*w)[at:], uint16(len(*w)-at))
}

package frame

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

const (
	etherTypeARP  = 0x0806
	etherTypeIPv6 = 0x86dd
	icmpv6        = 58
	// neighbourAdvertisement is a type of ICMPv6 (RFC 4861, 4.4).
	neighbourAdvertisement = 136
)

// Announcement is the frame by which everybody on a link learns that mac has an address now: an ARP announcement (RFC 5227, 2.3), or an unsolicited neighbour advertisement
// that overrides (RFC 4861, 7.2.6).
func Announcement(mac net.HardwareAddr, addr netip.Addr) []byte {
	if addr.Is4() {
		return arpAnnouncement(mac, addr)
	}
	return advertisement(mac, addr)
}

func arpAnnouncement(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := slices.Repeat([]byte{0xff}, 6)
	b = append(b, mac...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = binary.BigEndian.AppendUint16(b, 1)      // hardware: Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800) // protocol: IPv4
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, 1) // request
	b = append(append(b, mac...), addr.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), addr.AsSlice()...)
	return append(b, make([]byte, minimum-len(b))...)
}

func advertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	all := netip.MustParseAddr("ff02::1").As16()
	from := addr.As16()
	message := []byte{neighbourAdvertisement, 0, 0, 0, 0x20, 0, 0, 0} // override; neither router nor solicited
	message = append(message, from[:]...)
	message = append(append(message, 2, 1), mac...) // target link-layer address
	sum := checksum(from[:], all[:], message)
	binary.BigEndian.PutUint16(message[2:], sum)

	b := []byte{0x33, 0x33, 0, 0, 0, 1}
	b = append(b, mac...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, icmpv6, 255) // hop limit: nobody takes one that was forwarded
	b = append(append(b, from[:]...), all[:]...)
	return append(b, message...)
}

// checksum of an ICMPv6 message with its pseudo-header (RFC 4443, 2.3; RFC 8200, 8.1). The message has an even length.
func checksum(from, to, message []byte) uint16 {
	pseudo := slices.Concat(from, to, binary.BigEndian.AppendUint32(nil, uint32(len(message))), []byte{0, 0, 0, icmpv6}, message)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

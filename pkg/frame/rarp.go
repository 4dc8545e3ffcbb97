package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	etherTypeRARP = 0x8035
	// minimum is the length of the shortest Ethernet frame, in bytes, without its checksum.
	minimum = 60
	// header is the length of an Ethernet header.
	header = 14
)

// RARP is the frame with which QEMU announces a VM that has moved (net/announce.c, announce_self_create): a "request reverse" (RFC 903) to everybody, in
// which the VM asks for its own address. mac has 48 bits.
func RARP(mac net.HardwareAddr) []byte {
	b := slices.Repeat([]byte{0xff}, 6)
	b = append(b, mac...)
	b = binary.BigEndian.AppendUint16(b, etherTypeRARP)
	b = binary.BigEndian.AppendUint16(b, 1)      // hardware: Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800) // protocol: IPv4
	b = append(b, 6, 4)                          // lengths of either's addresses
	b = binary.BigEndian.AppendUint16(b, 3)      // request reverse
	for range 2 {                                // sender and target are the same, their IPv4 addresses unknown
		b = append(b, mac...)
		b = append(b, 0, 0, 0, 0)
	}
	return append(b, make([]byte, minimum-len(b))...)
}

// mark tells Opening from a VM's announcement, in octets of the frame that mean nothing to anybody: those that fill it up to its least length.
const mark = "godwit"

// marked is where the mark is: behind the Ethernet header and the 28 octets of the RARP packet.
const marked = header + 28

// Opening is a RARP frame that opens a port as RARP does, and that a Capture tells from the VM's: it says that the VM is about to run here, not that it does.
func Opening(mac net.HardwareAddr) []byte {
	b := RARP(mac)
	copy(b[marked:], mark)
	return b
}

// Send puts a whole frame on the link of that index, in the calling thread's network namespace.
func Send(index int, frame []byte) (err error) {
	// Protocol 0: the socket receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() {
		if cerr := unix.Close(fd); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close packet socket: %w", cerr))
		}
	}()
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(binary.BigEndian.Uint16(frame[12:])), Ifindex: index, Halen: 6}
	copy(to.Addr[:], frame)
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
		return fmt.Errorf("send frame on link %d: %w", index, err)
	}
	return nil
}

// networkOrder is v as a machine word whose bytes are in network order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

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

// Sender puts frames on one link. It needs no thread in the link's network namespace once it is there: a frame that is in a hurry waits for nothing but the kernel.
type Sender struct {
	file  *os.File
	conn  syscall.RawConn
	index int
}

// NewSender sends on the link of that index, in the calling thread's network namespace.
func NewSender(index int) (*Sender, error) {
	// Protocol 0: the socket receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf("packet:%d", index))
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("send on link %d: %w", index, err), file.Close())
	}
	return &Sender{file: file, conn: conn, index: index}, nil
}

// Send puts a whole frame on the link. Safe for concurrent use.
func (s *Sender) Send(frame []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(binary.BigEndian.Uint16(frame[12:])), Ifindex: s.index, Halen: 6}
	copy(to.Addr[:], frame)
	var err error
	werr := s.conn.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), frame, 0, to)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err = errors.Join(werr, err); err != nil {
		return fmt.Errorf("send frame on link %d: %w", s.index, err)
	}
	return nil
}

// Close is for good.
func (s *Sender) Close() error { return s.file.Close() }

// Send puts one frame on a link, as a Sender does.
func Send(index int, frame []byte) error {
	s, err := NewSender(index)
	if err != nil {
		return err
	}
	return errors.Join(s.Send(frame), s.Close())
}

// networkOrder is v as a machine word whose bytes are in network order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

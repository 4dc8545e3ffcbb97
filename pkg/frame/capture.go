package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer is how much the kernel keeps for a reader that is late, in bytes. A frame counts with all the memory that it takes, not with what is read of it.
const receiveBuffer = 8 << 20

// looked is how much of a frame is looked at, in bytes: its header, and of a RARP the mark.
const looked = marked + len(mark)

// Seen is one frame that came in on a link.
type Seen struct {
	// At is when the kernel got it, by the node's clock.
	At time.Time
	// RARP tells an announcement from all other frames. Ours: it is not the VM's, an agent made it with Opening.
	RARP, Ours bool
	// Type is its EtherType, To where it goes.
	Type uint16
	To   [6]byte
}

// String tells what kind of frame it is.
func (s Seen) String() string {
	return fmt.Sprintf("EtherType %#04x to %s", s.Type, net.HardwareAddr(s.To[:]))
}

// Capture sees frames that come in on a link: those from one MAC address, and any RARP. IPv6 multicast is left out: a kernel sends it by itself whenever an
// interface comes up, a pod's kernel too, in which no VM runs yet.
type Capture struct {
	file *os.File
	conn syscall.RawConn
	buf  [looked]byte
	oob  [64]byte
}

// Open begins to see frames on the link of that name, in the calling thread's network namespace. From its return on none is missed. The kernel begins to time
// frames a moment later (net_enable_timestamp defers it): those that come before have the time at which they are read.
func Open(link string, mac net.HardwareAddr) (*Capture, error) {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", link, err)
	}
	// Protocol 0: nothing is received before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "packet:"+link)
	if err := prepare(fd, iface.Index, mac); err != nil {
		return nil, errors.Join(fmt.Errorf("see frames on link %s: %w", link, err), file.Close())
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("see frames on link %s: %w", link, err), file.Close())
	}
	return &Capture{file: file, conn: conn}, nil
}

func prepare(fd, index int, mac net.HardwareAddr) error {
	program := filter(mac)
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("ask for times: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// Addresses that a classic filter can load from besides the frame (linux/filter.h).
const (
	skfAdOff     = -0x1000
	skfAdPktType = 4
)

// filter is the classic BPF program of a Capture. It passes the beginning of a frame only.
func filter(mac net.HardwareAddr) []unix.SockFilter {
	load := func(size uint16, at int32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: uint32(at)}
	}
	// jump goes on if the loaded value is k, or by so many instructions further.
	jump := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	pass := func(bytes uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: bytes} }
	return []unix.SockFilter{
		load(unix.BPF_B, skfAdOff+skfAdPktType), jump(unix.PACKET_OUTGOING, 9, 0), // to the pod
		load(unix.BPF_H, 12), jump(etherTypeRARP, 6, 0),
		load(unix.BPF_W, 6), jump(binary.BigEndian.Uint32(mac), 0, 5),
		load(unix.BPF_H, 10), jump(uint32(binary.BigEndian.Uint16(mac[4:])), 0, 3),
		load(unix.BPF_H, 0), jump(0x3333, 1, 0), // IPv6 multicast
		pass(uint32(looked)),
		pass(0),
	}
}

// Read waits for a frame and returns all that there are, as many as frames holds. After Close it returns an error that wraps os.ErrClosed; when the link
// is gone, another.
func (c *Capture) Read(frames []Seen) (n int, err error) {
	werr := c.conn.Read(func(fd uintptr) (ready bool) {
		for n < len(frames) {
			size, oobn, _, _, rerr := unix.Recvmsg(int(fd), c.buf[:], c.oob[:], unix.MSG_DONTWAIT)
			switch {
			case errors.Is(rerr, unix.EINTR):
				continue
			case errors.Is(rerr, unix.EAGAIN):
				return n > 0
			case rerr != nil:
				err = fmt.Errorf("receive frame on %s: %w", c.file.Name(), rerr)
				return true
			}
			etherType := binary.BigEndian.Uint16(c.buf[12:])
			frames[n] = Seen{At: timestamp(c.oob[:oobn]), RARP: etherType == etherTypeRARP, Type: etherType, To: [6]byte(c.buf[:6])}
			frames[n].Ours = frames[n].RARP && size >= looked && string(c.buf[marked:looked]) == mark
			n++
		}
		return true
	})
	if werr != nil { // nothing but Close ends the wait
		return n, fmt.Errorf("receive frame on %s: %w: %w", c.file.Name(), os.ErrClosed, werr)
	}
	return n, err
}

// timestamp is the kernel's time of a message, the present if it gave none.
func timestamp(oob []byte) time.Time {
	for len(oob) > 0 {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if hdr.Level == unix.SOL_SOCKET && hdr.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16 { // struct timespec of a 64-bit machine
			return time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		}
		oob = rest
	}
	return time.Now()
}

// Close ends a Read that waits.
func (c *Capture) Close() error {
	if err := c.file.Close(); err != nil {
		return fmt.Errorf("close capture on %s: %w", c.file.Name(), err)
	}
	return nil
}

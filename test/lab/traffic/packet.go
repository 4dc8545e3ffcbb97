package traffic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// datagrams is a UDP socket whose datagrams come with the kernel's time of arrival and the address that they were sent to.
type datagrams struct {
	conn *net.UDPConn
	oob  []byte
}

// received is one datagram.
type received struct {
	data []byte
	from netip.AddrPort
	// at is the kernel's time of arrival, without a monotonic reading.
	at time.Time
	// local is a control message that makes an answer leave from the address that the datagram was sent to.
	local []byte
}

func newDatagrams(conn *net.UDPConn) (*datagrams, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("set up a socket for datagrams: %w", err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		s := int(fd)
		domain, err := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_DOMAIN)
		level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
		if domain == unix.AF_INET6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
		}
		failed = errors.Join(err, unix.SetsockoptInt(s, level, option, 1), unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	}); err != nil {
		return nil, fmt.Errorf("set up a socket for datagrams: %w", err)
	}
	if failed != nil {
		return nil, fmt.Errorf("ask for times of arrival: %w", failed)
	}
	// Bursts after an interruption wait here rather than being lost. The kernel may grant less.
	_ = conn.SetReadBuffer(1 << 20)
	return &datagrams{conn: conn, oob: make([]byte, 256)}, nil
}

// read waits for a datagram and reads it into buf. What it returns is good until the next one.
func (d *datagrams) read(buf []byte) (received, error) {
	n, oobn, _, from, err := d.conn.ReadMsgUDPAddrPort(buf, d.oob)
	if err != nil {
		return received{}, err
	}
	r := received{data: buf[:n], from: from, at: time.Now().Round(0)}
	messages, err := unix.ParseSocketControlMessage(d.oob[:oobn])
	if err != nil {
		return received{}, fmt.Errorf("read a datagram's control messages: %w", err)
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			r.at = time.Unix(ts.Unix())
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := *(*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0]))
			if from.Addr().Is4In6() || !netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
				info.Ifindex = 0 // routing decides
			}
			r.local = unix.PktInfo6(&info)
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := *(*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0]))
			info.Spec_dst, info.Ifindex = info.Addr, 0
			r.local = unix.PktInfo4(&info)
		}
	}
	return r, nil
}

// answer sends data to where r came from, from where it went to.
func (d *datagrams) answer(r received, data []byte) error {
	_, _, err := d.conn.WriteMsgUDPAddrPort(data, r.local, r.from)
	return err
}

// transient tells errors of a socket for datagrams that say something about one datagram (an ICMP error) from those that end it.
func transient(err error) bool {
	for _, e := range []unix.Errno{
		unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENETDOWN, unix.EPERM, unix.ENOBUFS, unix.EAGAIN, unix.EMSGSIZE, unix.EHOSTDOWN, unix.EACCES,
		unix.EPROTO, unix.EINVAL, unix.EADDRNOTAVAIL,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, os.ErrDeadlineExceeded)
}

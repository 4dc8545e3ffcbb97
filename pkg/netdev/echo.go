package netdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Headers before the data of an echo request (RFC 792, RFC 4443), in bytes.
const (
	headerIPv4 = 20
	headerIPv6 = 40
	headerEcho = 8
)

// Types of ICMP and ICMPv6.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// echoTimeout is how long an answer may take, of a node that is reached through a tunnel. echoTries: the first packet may be lost while a neighbour is looked for.
const (
	echoTimeout = time.Second
	echoTries   = 3
)

// Echo asks an address over a link, by ICMP.
type Echo struct {
	// Link is the name of the link that it is sent by, whatever the routes are.
	Link string
	To   netip.Addr
	// Size of the IP packet in bytes. It is never fragmented.
	Size int
}

// Ask sends an echo request, up to three times, and returns how long the answer took to the one that was answered.
func (e Echo) Ask(ctx context.Context) (time.Duration, error) {
	headers := headerIPv4 + headerEcho
	network, everywhere := "ip4:icmp", "0.0.0.0"
	if e.To.Is6() {
		headers, network, everywhere = headerIPv6+headerEcho, "ip6:ipv6-icmp", "::"
	}
	if e.Size < headers {
		return 0, fmt.Errorf("echo to %s: a packet of %d bytes has no room for its headers, which take %d", e.To, e.Size, headers)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return e.prepare(c) }}
	conn, err := config.ListenPacket(ctx, network, everywhere)
	if err != nil {
		return 0, fmt.Errorf("echo to %s over %s: %w", e.To, e.Link, err)
	}
	defer func() { _ = conn.Close() }()
	id := uint16(rand.Uint32()) //nolint:gosec // to tell answers to others apart
	for try := range uint16(echoTries) {
		var took time.Duration
		if took, err = e.once(ctx, conn, message(e.To, e.Size-headers, id, try)); err == nil || ctx.Err() != nil || !errors.Is(err, errNoAnswer) {
			return took, err
		}
	}
	return 0, err
}

// prepare: by this link, and in one piece, whatever was found out of the path before.
func (e Echo) prepare(c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
		if e.To.Is6() {
			level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
		}
		err = errors.Join(unix.BindToDevice(int(fd), e.Link), unix.SetsockoptInt(int(fd), level, option, value))
	}); cerr != nil {
		return cerr
	}
	return err
}

// errNoAnswer says that a request was sent, and nothing came back.
var errNoAnswer = errors.New("no answer")

// once sends a request and waits for its answer.
func (e Echo) once(ctx context.Context, conn net.PacketConn, request []byte) (time.Duration, error) {
	sent := time.Now()
	deadline := sent.Add(echoTimeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, fmt.Errorf("echo to %s: %w", e.To, err)
	}
	_, err := conn.WriteTo(request, &net.IPAddr{IP: e.To.AsSlice()})
	if errors.Is(err, unix.EMSGSIZE) {
		return 0, fmt.Errorf("%s itself does not carry packets of %d bytes", e.Link, e.Size)
	}
	if errors.Is(err, unix.ENOBUFS) { // a veth says so where its other end does not take it
		return 0, fmt.Errorf("%w: the other end of %s does not take it", errNoAnswer, e.Link)
	}
	if err != nil {
		return 0, fmt.Errorf("echo to %s over %s: %w", e.To, e.Link, err)
	}
	answer := make([]byte, e.Size)
	for {
		n, from, err := conn.ReadFrom(answer)
		if err != nil {
			return 0, fmt.Errorf("%w within %s", errNoAnswer, echoTimeout)
		}
		ip, ok := from.(*net.IPAddr)
		if !ok {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.IP); ok && a.Unmap() == e.To && answers(answer[:n], request) {
			return time.Since(sent), nil
		}
	}
}

// message is an echo request with so many bytes of data. The kernel sums up ICMPv6 by itself.
func message(to netip.Addr, data int, id, sequence uint16) []byte {
	m := make([]byte, headerEcho+data)
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], sequence)
	for i := range data {
		m[headerEcho+i] = byte(i)
	}
	m[0] = echoRequest6
	if to.Is4() {
		m[0] = echoRequest4
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	return m
}

// answers says whether a message is the reply to a request: all of it has come back.
func answers(reply, request []byte) bool {
	if len(reply) != len(request) {
		return false
	}
	kind := byte(echoReply6)
	if request[0] == echoRequest4 {
		kind = echoReply4
	}
	return reply[0] == kind && string(reply[4:]) == string(request[4:])
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) //nolint:gosec // folded
}

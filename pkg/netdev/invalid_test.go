package netdev

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

func TestDropInvalidRules(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, nftTable)
	for _, link := range []string{"eth0", "net1", "eth0"} {
		if err := dropInvalid(t.Context(), fake, link); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.TrimSpace(`
add table inet godwit
add chain inet godwit prerouting { type filter hook prerouting priority -150 ; }
add set inet godwit links { type ifname ; }
add rule inet godwit prerouting iifname @links ct state invalid drop
add element inet godwit links { "eth0" }
add element inet godwit links { "net1" }`)
	if diff := cmp.Diff(want, strings.TrimSpace(fake.Dump())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// A reply to a connection that the pod knows nothing of, as a migration's other pod is sent: the pod resets the connection, unless what fits into none is dropped. A connection of its own goes on.
func TestDropInvalid(t *testing.T) {
	useNFT(t)
	world, pod := newHost(t), Host{Netns: namespace(t).Path()}
	connect(t, world, "veth", "192.0.2.1/24", pod, "192.0.2.2/24")
	if !reset(t, world, "192.0.2.1", "192.0.2.2", 20*time.Second) {
		t.Fatal("the pod does not answer a stray SYN+ACK by a reset: the test tests nothing")
	}
	for range 2 {
		if err := DropInvalid(t.Context(), pod.Netns, "far"); err != nil {
			t.Fatal(err)
		}
	}
	if reset(t, world, "192.0.2.1", "192.0.2.2", 300*time.Millisecond) {
		t.Error("the pod answers a stray SYN+ACK by a reset")
	}
	for name, ends := range map[string]struct{ client, server Host }{"from": {pod, world}, "to": {world, pod}} {
		at := map[Host]string{world: "192.0.2.1", pod: "192.0.2.2"}
		if got := seenFrom(t, ends.client, ends.server, at[ends.server]+":77"); got != at[ends.client] {
			t.Errorf("a connection %s the pod comes from %q", name, got)
		}
	}
}

// reset sends a SYN+ACK from one address to another, and reports whether a reset comes back within so long.
func reset(t *testing.T, from Host, src, dst string, within time.Duration) bool {
	t.Helper()
	const header, sport, dport, offset, synAck, rst = 20, 4321, 7, 5 << 4, 0x12, 0x04
	var c net.PacketConn
	if err := from.do(func() (err error) { c, err = net.ListenPacket("ip4:tcp", src); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b := make([]byte, header)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = offset, synAck
	binary.BigEndian.PutUint16(b[14:], 1024)
	binary.BigEndian.PutUint16(b[16:], tcpChecksum(b, netip.MustParseAddr(src), netip.MustParseAddr(dst)))
	if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(dst)}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	for in := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case err != nil:
			t.Fatal(err)
		case n >= header && binary.BigEndian.Uint16(in[2:]) == sport && in[13]&rst != 0:
			return true
		}
	}
}

// tcpChecksum is RFC 9293's, over the segment and its IPv4 pseudo header.
func tcpChecksum(segment []byte, src, dst netip.Addr) uint16 {
	const protocol = 6
	s, d := src.As4(), dst.As4()
	var sum uint32
	for all := slices.Concat(s[:], d[:], []byte{0, protocol, 0, byte(len(segment))}, segment); len(all) > 1; all = all[2:] {
		sum += uint32(binary.BigEndian.Uint16(all))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

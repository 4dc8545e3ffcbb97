package guest_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// TestMasquerade moves a guest that is hidden behind its pod: its connections go on when the network has turned to the other pod, and nothing of what QEMU announces
// leaves a pod.
func TestMasquerade(t *testing.T) {
	w := newWorld(t)
	nics := []guest.NIC{{Name: "default", Binding: guest.Masquerade, MAC: "02:00:00:be:ef:01"}}
	one, two := w.pod(t), w.pod(t)
	for _, p := range []*pod{one, two} {
		plumbed, err := p.Plumb(t.Context(), nics)
		if err != nil {
			t.Fatal(err)
		}
		if plumbed[0].MAC != nics[0].MAC || plumbed[0].PodMAC != podMAC.String() || !plumbed[0].DHCP {
			t.Errorf("plumbed %+v, want the guest's MAC address %s, the pod's %s, and DHCP", plumbed[0], nics[0].MAC, podMAC)
		}
	}
	w.setPort(t, two.port, netlink.LinkSetDown) // the network sends to the first
	if err := one.Start(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	conn := w.dial(t, echo)
	wantEcho(t, conn, "through the pod's address")
	w.setPort(t, two.port, netlink.LinkSetUp)
	leaked := w.sniff(t, two.port, etherRARP)
	migrate(t, one, two, guest.Incoming{}, guest.Migration{})
	resumed := two.await(t, 0, guest.Resumed)
	w.setPort(t, one.port, netlink.LinkSetDown)
	wantEcho(t, conn, "through the other pod")
	time.Sleep(time.Until(resumed.At().Add(1200 * time.Millisecond))) // QEMU's fifth announcement leaves after about 800 ms
	if frames := leaked(); len(frames) > 0 {
		t.Errorf("%d RARPs left the target's pod, want none: %v", len(frames), frames)
	}
	// A pod's end: where the guest was, and where it is.
	for _, p := range []*pod{one, two} {
		if err := p.process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.wantStatus(t, 0)
	}
}

func (w *world) setPort(t *testing.T, port string, set func(netlink.Link) error) {
	t.Helper()
	err := w.ns.Do(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return set(link)
	})
	if err != nil {
		t.Fatalf("change %s: %v", port, err)
	}
}

// The network of TestIPv6.
var (
	gateway6 = netip.MustParsePrefix("fd00:9::1/64")
	podIP6   = netip.MustParsePrefix("fd00:9::5/64")
)

// TestIPv6 boots a guest in a network without IPv4: the pod has no DHCP server then, and the network gives the address by stateful DHCPv6.
func TestIPv6(t *testing.T) {
	w := newWorld(t)
	if err := w.ns.Do(func() error { return errors.Join(configure(wire, nil, gateway6), advertise(t), serveDHCP6(t)) }); err != nil {
		t.Fatalf("make an IPv6 network: %v", err)
	}
	p := w.podWith(t, func() error { return configure("eth0", podMAC, podIP6) })
	plumbed, err := p.Plumb(t.Context(), []guest.NIC{{Name: "default"}})
	if err != nil {
		t.Fatal(err)
	}
	if plumbed[0].DHCP || len(plumbed[0].Addresses) != 1 || plumbed[0].Addresses[0] != podIP6 {
		t.Errorf("plumbed %+v, want address %s and no DHCP", plumbed[0], podIP6)
	}
	if err := p.Start(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, w.dial(t, net.JoinHostPort(podIP6.Addr().String(), "7")), "by IPv6")
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, 1) // a crash
}

// advertise sends router advertisements that tell of DHCPv6, until the test ends.
func advertise(t *testing.T) error {
	link, err := net.InterfaceByName(wire)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	const managed, onLink, lifetime = 0x80, 0x80, 1800
	ra := []byte{134, 0, 0, 0, 64, managed, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	ra = append(append(ra, 1, 1), link.HardwareAddr...)
	ra = append(ra, 3, 4, byte(gateway6.Bits()), onLink)
	ra = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(ra, lifetime), lifetime)
	ra = append(append(ra, 0, 0, 0, 0), gateway6.Masked().Addr().AsSlice()...)
	all := &unix.SockaddrInet6{Addr: netip.IPv6LinkLocalAllNodes().As16(), ZoneId: uint32(link.Index)}
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		for t.Context().Err() == nil {
			_ = unix.Sendto(fd, ra, 0, all) // fails until the link has its link-local address
			time.Sleep(200 * time.Millisecond)
		}
		_ = unix.Close(fd)
	}()
	return nil
}

// serveDHCP6 gives the pod's address to whoever asks.
func serveDHCP6(t *testing.T) error {
	ours := dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: podMAC})
	server, err := server6.NewServer(wire, nil, func(conn net.PacketConn, peer net.Addr, m dhcpv6.DHCPv6) {
		msg, err := m.GetInnerMessage()
		if err != nil {
			return
		}
		answer := dhcpv6.NewReplyFromMessage
		if msg.Type() == dhcpv6.MessageTypeSolicit {
			answer = dhcpv6.NewAdvertiseFromSolicit
		}
		const forever = (1<<32 - 1) * time.Second
		reply, err := answer(msg, ours, dhcpv6.WithIANA(dhcpv6.OptIAAddress{
			IPv6Addr: podIP6.Addr().AsSlice(), PreferredLifetime: forever, ValidLifetime: forever,
		}))
		if err == nil {
			_, _ = conn.WriteTo(reply.ToBytes(), peer) // the client asks again
		}
	})
	if err != nil {
		return err
	}
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		_ = server.Serve() // ends by Close
	}()
	t.Cleanup(func() { _ = server.Close() })
	return nil
}

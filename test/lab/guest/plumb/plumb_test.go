package plumb

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

var mac = net.HardwareAddr{0x0a, 0x58, 10, 9, 0, 5}

func cidr(s string) *net.IPNet {
	return ipNet(netip.MustParsePrefix(s))
}

func TestNames(t *testing.T) {
	for link, want := range map[string][3]string{
		"eth0":           {"k6t-eth0", "tap0", "eth0-nic"},
		"net1":           {"k6t-net1", "tap1", "net1-nic"},
		"pod6446d58d6df": {"k6t-6446d58d6df", "tap6446d58d6df", "6446d58d6df-nic"},
	} {
		bridge, tap, nic := names(link)
		if got := [3]string{bridge, tap, nic}; got != want {
			t.Errorf("names of %s: %v, want %v", link, got, want)
		}
		for _, n := range []string{bridge, tap, nic} {
			if len(n) > 15 {
				t.Errorf("name %q of %s: want at most 15 bytes", n, link)
			}
		}
	}
}

func TestBridgeLease(t *testing.T) {
	server := netip.MustParseAddr("169.254.75.10")
	via := net.IP{10, 9, 0, 1}
	for _, tt := range []struct {
		name   string
		addr   string
		routes []netlink.Route
		want   *Lease
	}{
		{"no route", "10.9.0.5/24", nil, nil},
		{
			"a default route", "10.9.0.5/24",
			[]netlink.Route{{Gw: via}, {Dst: cidr("10.9.0.0/24"), Src: net.IP{10, 9, 0, 5}}},
			&Lease{Router: netip.MustParseAddr("10.9.0.1"), Routes: []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.9.0.1")}}},
		},
		{
			"a gateway outside the network", "10.9.0.5/32",
			[]netlink.Route{{Dst: cidr("0.0.0.0/0"), Gw: net.IP{169, 254, 1, 1}}, {Dst: cidr("169.254.1.1/32")}},
			&Lease{Router: netip.MustParseAddr("169.254.1.1"), Routes: []Route{
				{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("169.254.1.1")}, {netip.MustParsePrefix("169.254.1.1/32"), netip.IPv4Unspecified()},
			}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := bridgeLease(podLink{mtu: 1400, addrs: []netip.Prefix{netip.MustParsePrefix(tt.addr)}, routes: tt.routes}, mac, server)
			if tt.want != nil {
				tt.want.MAC, tt.want.Server, tt.want.MTU, tt.want.Address = mac, server, 1400, netip.MustParsePrefix(tt.addr)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("lease (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 10.96.0.10\nnameserver fd00::10\nsearch a.test b.test\noptions ndots:5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := Lease{
		MAC: mac, Address: netip.MustParsePrefix("10.9.0.5/24"), Server: netip.MustParseAddr("169.254.75.10"), Router: netip.MustParseAddr("10.9.0.1"), MTU: 1400,
		Routes: []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.9.0.1")}},
	}
	options, err := l.options(resolv)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(kind dhcpv4.MessageType, from net.HardwareAddr, wanted net.IP) *dhcpv4.DHCPv4 {
		t.Helper()
		m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(from))
		if err != nil {
			t.Fatal(err)
		}
		if wanted != nil {
			m.UpdateOption(dhcpv4.OptRequestedIPAddress(wanted))
		}
		return l.answer(m, options)
	}
	address := net.IP{10, 9, 0, 5}
	for _, tt := range []struct {
		kind   dhcpv4.MessageType
		wanted net.IP
		want   dhcpv4.MessageType
	}{
		{dhcpv4.MessageTypeDiscover, nil, dhcpv4.MessageTypeOffer},
		{dhcpv4.MessageTypeRequest, address, dhcpv4.MessageTypeAck},
		{dhcpv4.MessageTypeRequest, nil, dhcpv4.MessageTypeAck},
		{dhcpv4.MessageTypeRequest, net.IP{10, 9, 0, 6}, dhcpv4.MessageTypeNak},
	} {
		if got := ask(tt.kind, mac, tt.wanted); got == nil || got.MessageType() != tt.want {
			t.Errorf("%s for %s is answered by %v, want %s", tt.kind, tt.wanted, got, tt.want)
		}
	}
	if got := ask(dhcpv4.MessageTypeDiscover, net.HardwareAddr{2, 0, 0, 0, 0, 9}, nil); got != nil {
		t.Errorf("another guest is answered by %s, want nothing", got.Summary())
	}
	if got := ask(dhcpv4.MessageTypeRelease, mac, nil); got != nil {
		t.Errorf("a release is answered by %s, want nothing", got.Summary())
	}
	ack := ask(dhcpv4.MessageTypeRequest, mac, address)
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	got := []any{
		ack.YourIPAddr.String(), ack.SubnetMask().String(), ack.IPAddressLeaseTime(0), mtu, ack.Router()[0].String(), len(ack.Router()),
		ack.ClasslessStaticRoute()[0].Dest.String(), ack.ClasslessStaticRoute()[0].Router.String(), ack.DNS()[0].String(), len(ack.DNS()),
		ack.DomainSearch().Labels[1], ack.ServerIdentifier().String(),
	}
	want := []any{"10.9.0.5", "ffffff00", forever, uint16(1400), "10.9.0.1", 1, "0.0.0.0/0", "10.9.0.1", "10.96.0.10", 1, "b.test", "169.254.75.10"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the lease (-want +got):\n%s", diff)
	}
}

func TestGuestMAC(t *testing.T) {
	for _, bad := range []string{"xyz", "01:00:5e:00:00:01", "02:00:00:00:00:00:00:01"} {
		if got, err := guestMAC(guest.NIC{MAC: bad}, mac); err == nil {
			t.Errorf("MAC address %q gives %s, want an error", bad, got)
		}
	}
	if got, err := guestMAC(guest.NIC{}, mac); err != nil || got.String() != mac.String() {
		t.Errorf("without an address of the VM's: %s, %v: want the link's", got, err)
	}
	for range 100 {
		if m := randomMAC(); m[0]&3 != 2 {
			t.Fatalf("random MAC address %s: want a local unicast one", m)
		}
	}
}

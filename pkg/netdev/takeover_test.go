package netdev

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestTakeOver: what a link has, addresses and routes, goes to another, and comes back to it after that was made anew; as long as there is no other, it stays.
func TestTakeOver(t *testing.T) {
	node := newHost(t)
	addLink(t, node, "eth1")
	want := []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("fd00:1::1/64")}
	if err := node.do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		errs := []error{writeSysctl("net/ipv6/conf/eth1/disable_ipv6", "0"), netlink.LinkSetUp(link)}
		for _, a := range want {
			errs = append(errs, netlink.AddrAdd(link, address(a)))
		}
		via := netip.MustParseAddr("198.51.100.254")
		errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Gw: via.AsSlice()}))
		return errors.Join(errs...)
	}); err != nil {
		t.Fatal(err)
	}
	held, err := node.Holdings("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(held.Addresses, want) || !slices.Equal(held.Routes, []string{"203.0.113.0/24>198.51.100.254"}) {
		t.Fatalf("eth1 holds %+v", held)
	}
	if err := node.TakeOver("br", "eth1", held); !errors.Is(err, ErrNoLink) {
		t.Fatalf("without the other link: %v", err)
	}
	if now, err := node.Holdings("eth1"); err != nil || !slices.Equal(now.Addresses, want) {
		t.Fatalf("eth1 has %+v (%v) before there is another", now, err)
	}
	for range 2 { // the second one is new
		addLink(t, node, "br")
		for range 2 {
			if err := node.TakeOver("br", "eth1", held); err != nil {
				t.Fatal(err)
			}
		}
		got, err := node.Holdings("br")
		if err != nil || !slices.Equal(got.Addresses, want) || !slices.Equal(got.Routes, held.Routes) {
			t.Errorf("br has %+v (%v), want %+v", got, err, held)
		}
		if left, err := node.Holdings("eth1"); err != nil || len(left.Addresses) > 0 {
			t.Errorf("eth1 still has %+v (%v)", left, err)
		}
		if err := node.DeleteLink("br"); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := node.GiveBack("eth1", held); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := node.Holdings("eth1"); err != nil || !slices.Equal(now.Addresses, want) || !slices.Equal(now.Routes, held.Routes) {
		t.Errorf("eth1 has %+v (%v) again, want %+v", now, err, held)
	}
	if on, err := node.TXChecksum("eth1"); err != nil || !on {
		t.Errorf("eth1 finishes checksums: %t, %v", on, err)
	}
	if err := node.GiveBack("gone", held); err != nil {
		t.Error(err)
	}
}

// A route keeps its metric, so that another link's goes before it; it takes nobody else's place, and that of its own link's former gateway.
func TestTakeOverKeepsMetrics(t *testing.T) {
	node := newHost(t)
	for _, name := range []string{"eth0", "br"} {
		addLink(t, node, name)
	}
	dst := func(text string) *net.IPNet { return ipNet(netip.MustParsePrefix(text)) }
	err := node.do(func() error {
		var errs []error
		for name, addr := range map[string]string{"eth0": "192.0.2.1/24", "br": "198.51.100.1/24"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			errs = append(errs, netlink.LinkSetUp(link), netlink.AddrAdd(link, address(netip.MustParsePrefix(addr))))
			if name == "eth0" {
				via := netip.MustParseAddr("192.0.2.254").AsSlice()
				errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst("0.0.0.0/0"), Gw: via, Priority: 100}),
					netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst("10.0.0.0/8"), Gw: via}))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ give, want []string }{
		{[]string{"0.0.0.0/0>198.51.100.254>101", "10.0.0.0/8>198.51.100.254"}, []string{"0.0.0.0/0>198.51.100.254>101"}},
		{[]string{"0.0.0.0/0>198.51.100.253>101"}, []string{"0.0.0.0/0>198.51.100.253>101"}},
	} {
		err := node.do(func() error {
			link, err := netlink.LinkByName("br")
			if err != nil {
				return err
			}
			return addRoutes(link, c.give)
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := node.Holdings("br"); err != nil || !slices.Equal(got.Routes, c.want) {
			t.Errorf("br has %v (%v), want %v", got.Routes, err, c.want)
		}
	}
	held, err := node.Holdings("eth0")
	if want := []string{"0.0.0.0/0>192.0.2.254>100", "10.0.0.0/8>192.0.2.254"}; err != nil || !slices.Equal(slices.Sorted(slices.Values(held.Routes)), want) {
		t.Errorf("eth0 has %v (%v), want %v", held.Routes, err, want)
	}
}

// A gateway that is reached by a route of its own, as with a single address, is on the link that takes over too; a route that cannot be is in no other's way.
func TestTakeOverGatewayOnLink(t *testing.T) {
	node := newHost(t)
	for _, name := range []string{"eth1", "br"} {
		addLink(t, node, name)
	}
	addrs := []netip.Prefix{netip.MustParsePrefix("10.128.0.5/32"), netip.MustParsePrefix("fd00:1::5/128")}
	if err := node.do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		errs := []error{writeSysctl("net/ipv6/conf/eth1/disable_ipv6", "0"), netlink.LinkSetUp(link)}
		for _, a := range addrs {
			errs = append(errs, netlink.AddrAdd(link, address(a)))
		}
		for _, r := range []netlink.Route{
			{Dst: ipNet(netip.MustParsePrefix("10.128.0.1/32")), Scope: netlink.SCOPE_LINK}, {Dst: ipNet(netip.MustParsePrefix("10.128.0.0/20")), Gw: net.ParseIP("10.128.0.1")},
			{Dst: ipNet(netip.MustParsePrefix("fd00:1::/48")), Gw: net.ParseIP("fd00:2::1"), Flags: int(netlink.FLAG_ONLINK)},
		} {
			r.LinkIndex = link.Attrs().Index
			errs = append(errs, netlink.RouteAdd(&r))
		}
		return errors.Join(errs...)
	}); err != nil {
		t.Fatal(err)
	}
	held, err := node.Holdings("eth1")
	want := []string{"10.128.0.0/20>10.128.0.1", "fd00:1::/48>fd00:2::1"}
	if err != nil || !slices.Equal(held.Routes, want) {
		t.Fatalf("eth1 has %v (%v), want %v", held.Routes, err, want)
	}
	for range 2 {
		if err := node.TakeOver("br", "eth1", held); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.DeleteLink("br"); err != nil {
		t.Fatal(err)
	}
	addLink(t, node, "br")
	held.Routes = append([]string{"10.129.0.0/20>fd00:1::1"}, held.Routes...)
	if err := node.TakeOver("br", "eth1", held); err == nil || !strings.Contains(err.Error(), held.Routes[0]) {
		t.Errorf("%v does not say %q", err, held.Routes[0])
	}
	if got, err := node.Holdings("br"); err != nil || !slices.Equal(got.Routes, want) || !slices.Equal(got.Addresses, addrs) {
		t.Errorf("br has %v and %v (%v), want %v and %v", got.Addresses, got.Routes, err, addrs, want)
	}
	if err := node.DeleteLink("br"); err != nil {
		t.Fatal(err)
	}
	if err := node.GiveBack("eth1", held); err == nil {
		t.Error("that a route could not be given back is not said")
	}
	if got, err := node.Holdings("eth1"); err != nil || !slices.Equal(got.Routes, want) {
		t.Errorf("eth1 has %v (%v) again, want %v", got.Routes, err, want)
	}
}

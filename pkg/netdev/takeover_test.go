package netdev

import (
	"errors"
	"net/netip"
	"slices"
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

package netdev

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Somebody else's route to the very range is in the way of that one route alone, is told of, and is left as it is; when it is gone ours is added. One with another metric is in nobody's way.
func TestRoutesInTheWay(t *testing.T) {
	h, g := newGateway(t, "ovn0")
	if err := h.ConfigureGateway(g); err != nil {
		t.Fatal(err)
	}
	var foreign []*netlink.Route
	if err := h.do(func() error {
		other, err := netlink.LinkByName("ovn0p")
		if err != nil {
			return err
		}
		add := func(dst, via string, metric int) {
			r := &netlink.Route{LinkIndex: other.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(via), Priority: metric, Protocol: unix.RTPROT_STATIC}
			if err = errors.Join(err, netlink.RouteAdd(r)); metric == 0 {
				foreign = append(foreign, r)
			}
		}
		err = errors.Join(writeSysctl("net/ipv6/conf/ovn0p/disable_ipv6", "0"), netlink.LinkSetUp(other), netlink.AddrAdd(other, address(netip.MustParsePrefix("192.168.1.11/24"))))
		add("10.244.0.0/16", "192.168.1.1", 0)
		add("10.244.0.0/16", "192.168.1.2", 50)
		add("10.245.0.0/16", "192.168.1.2", 50)
		add("fd00:1::/64", "", 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd64::1")
	routes := []Route{
		{Dst: netip.MustParsePrefix("10.244.0.0/16"), Via: four, Src: g.Addrs[0].Addr()}, {Dst: netip.MustParsePrefix("10.245.0.0/16"), Via: four, Src: g.Addrs[0].Addr()},
		{Dst: netip.MustParsePrefix("fd00:1::/64"), Via: six, Src: g.Addrs[1].Addr()}, {Dst: netip.MustParsePrefix("fd00:2::/64"), Via: six, Src: g.Addrs[1].Addr()},
	}
	check := func(wantBlocked, wantOwn string) {
		t.Helper()
		blocked, err := h.SyncRoutes("ovn0", routes)
		if err != nil {
			t.Fatal(err)
		}
		var words, own []string
		for _, b := range blocked {
			words = append(words, b.Dst.String()+" by "+b.By)
		}
		if err := h.do(func() error {
			have, err := ownRoutes()
			for i := range have {
				own = append(own, asRoute(&have[i]).Dst.String())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(words, ", "); got != wantBlocked {
			t.Errorf("blocked are %q, want %q", got, wantBlocked)
		}
		if got := strings.Join(own, " "); got != wantOwn {
			t.Errorf("routes are %q, want %q", got, wantOwn)
		}
	}
	for range 2 {
		check("10.244.0.0/16 by 10.244.0.0/16 via 192.168.1.1 dev ovn0p proto static, fd00:1::/64 by fd00:1::/64 dev ovn0p proto static", "10.245.0.0/16 fd00:2::/64")
	}
	if err := h.do(func() error { // they are still there
		return errors.Join(netlink.RouteDel(foreign[0]), netlink.RouteDel(foreign[1]))
	}); err != nil {
		t.Fatal(err)
	}
	check("", "10.244.0.0/16 10.245.0.0/16 fd00:1::/64 fd00:2::/64")
}

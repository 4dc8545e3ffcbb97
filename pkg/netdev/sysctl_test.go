package netdev

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	h, g := newGateway(t, "ovn0")
	for _, name := range []string{"up0", "quiet0", HostName("pod", "eth0")} {
		addLink(t, h, name)
	}
	read := func(key string) string {
		var value string
		if err := InNetns(h.Netns, func() error {
			b, err := os.ReadFile("/proc/sys/net/" + key)
			value = strings.TrimSpace(string(b))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return value
	}
	if err := InNetns(h.Netns, func() error { // as the kernel adds it when a router advertises itself
		link, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("2001:db8::/32")), Protocol: unix.RTPROT_RA})
	}); err != nil {
		t.Fatal(err)
	}
	if err := h.EnableForwarding(g.Addrs[:1]); err != nil {
		t.Fatal(err)
	}
	if got := read("ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("IPv6 forwarding is %s on a host with IPv4 only", got)
	}
	if err := h.EnableForwarding(g.Addrs); err != nil {
		t.Fatal(err)
	}
	addLink(t, h, "later0") // where the host forwards, 1 means no
	if err := h.EnableForwarding(g.Addrs); err != nil {
		t.Fatal(err)
	}
	got := []string{read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding")}
	for _, name := range []string{"up0", "quiet0", HostName("pod", "eth0"), "later0"} {
		got = append(got, read("ipv6/conf/"+name+"/accept_ra"))
	}
	if diff := cmp.Diff([]string{"1", "1", "2", "2", "1", "1"}, got); diff != "" {
		t.Errorf("ip_forward, forwarding, accept_ra of links with a router, whose router is silent, of a pod, and of a host that forwards (-want +got):\n%s", diff)
	}
}

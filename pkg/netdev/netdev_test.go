package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// namespace makes a network namespace for the test.
func namespace(t *testing.T) *netns.Namespace {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

func newHost(t *testing.T) Host {
	t.Helper()
	return Host{Netns: namespace(t).Path()}
}

func TestHostName(t *testing.T) {
	a, b := HostName("c1", "eth0"), HostName("c1", "eth1")
	if a == b || a == HostName("c2", "eth0") {
		t.Errorf("names of different attachments are equal: %s, %s", a, b)
	}
	if a != HostName("c1", "eth0") {
		t.Error("the name of one attachment differs between calls")
	}
	if len(a) != 13 || !isPodVeth(a) || isPodVeth("gw0") || isPodVeth("ovn0") {
		t.Errorf("%s is not recognized as ours, or another is", a)
	}
}

func TestInNetnsRestoresTheThread(t *testing.T) {
	ns := namespace(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	sentinel := errors.New("sentinel")
	inside := ""
	if err := InNetns(ns.Path(), func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return errors.Join(err, sentinel)
	}); !errors.Is(err, sentinel) {
		t.Errorf("error is %v, want fn's", err)
	}
	if inside == before || inside == "" {
		t.Errorf("fn ran in %q, the test is in %q", inside, before)
	}
	for range 50 { // no thread of the process is left in it
		after, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil || after != before {
			t.Fatalf("a thread is in %q (%v), want %q", after, err, before)
		}
	}
}

func TestCheckNetns(t *testing.T) {
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/nonexistent"} {
		if err := CheckNetns(path); !errors.Is(err, errNoNetns) {
			t.Errorf("CheckNetns(%s) = %v, want errNoNetns", path, err)
		}
		if err := InNetns(path, func() error { return nil }); !errors.Is(err, errNoNetns) {
			t.Errorf("InNetns(%s) = %v, want errNoNetns", path, err)
		}
	}
	ns := namespace(t)
	if err := CheckNetns(ns.Path()); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]bool{ns.Path(): true, "/proc/thread-self/ns/net": false} {
		if got, err := (Host{Netns: ns.Path()}).SameNetns(path); err != nil || got != want {
			t.Errorf("SameNetns(%s) = %v, %v, want %v", path, got, err, want)
		}
	}
}

var podMAC = net.HardwareAddr{0x0a, 0x67, 1, 2, 3, 4}

func podInterface(offload bool) Interface {
	return Interface{
		Name: "eth0", MAC: podMAC, MTU: 1400, NoOffload: !offload,
		Addrs:    []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd01::5/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")},
	}
}

func makePod(t *testing.T, h Host, i Interface) (hostName, pod string) {
	t.Helper()
	pod = namespace(t).Path()
	hostName = HostName(pod, i.Name)
	mac, err := h.CreateVeth(Veth{Host: hostName, Netns: pod, Name: i.Name, MAC: i.MAC, MTU: i.MTU, NoOffload: i.NoOffload})
	if err != nil {
		t.Fatal(err)
	}
	if got, found, err := h.LinkMAC(hostName); err != nil || !found || got.String() != mac.String() {
		t.Errorf("LinkMAC(%s) = %s, %v, %v, want %s", hostName, got, found, err, mac)
	}
	if err := h.ConfigureContainer(pod, i); err != nil {
		t.Fatal(err)
	}
	return hostName, pod
}

func TestVeth(t *testing.T) {
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			h, want := newHost(t), podInterface(offload)
			hostName, pod := makePod(t, h, want)
			if err := h.CheckContainer(pod, want); err != nil {
				t.Errorf("check of what was made: %v", err)
			}
			for where, check := range map[string]func() (bool, error){
				"host":      func() (bool, error) { return h.TXChecksum(hostName) },
				"container": func() (bool, error) { return Host{Netns: pod}.TXChecksum("eth0") },
			} {
				if on, err := check(); err != nil || on != offload {
					t.Errorf("TX checksum offload of the %s's side is %v (%v), want %v", where, on, err, offload)
				}
			}
			if err := InNetns(pod, func() error { return noTentative(t) }); err != nil {
				t.Error(err)
			}
			if err := h.ConfigureContainer(pod, want); err != nil {
				t.Errorf("configuring again: %v", err)
			}
			for range 2 {
				if err := h.DeleteLink(hostName); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
			if err := h.CheckContainer(pod, want); !errors.Is(err, ErrNoLink) {
				t.Errorf("check after deletion: %v, want ErrNoLink", err)
			}
		})
	}
}

// TestHostSideIsClosed: on the userspace datapath the kernel sees what comes in on the host's side too, and a pod that knows that side's MAC address must not reach
// the node by it, around OVN.
func TestHostSideIsClosed(t *testing.T) {
	h, i := newHost(t), podInterface(false)
	hostName, pod := makePod(t, h, i)
	var mac net.HardwareAddr
	if err := h.do(func() error {
		link, err := netlink.LinkByName(hostName)
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, address(netip.MustParsePrefix("192.0.2.1/32"))))
	}); err != nil {
		t.Fatal(err)
	}
	if err := InNetns(pod, func() error {
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: i.Gateways[0].AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	}); err != nil {
		t.Fatal(err)
	}
	if from, ok := datagram(t, Host{Netns: pod}, h, "192.0.2.1:7000"); ok {
		t.Errorf("the node took a datagram from %s on the pod's link", from)
	}
	if err := h.do(func() error { return writeSysctl("net/ipv4/conf/"+hostName+"/rp_filter", "0") }); err != nil {
		t.Fatal(err)
	}
	if _, ok := datagram(t, Host{Netns: pod}, h, "192.0.2.1:7000"); !ok {
		t.Error("the test's own datagram does not arrive even where nothing keeps it out")
	}
}

// noTentative: an address in duplicate address detection cannot be used for a second.
func noTentative(t *testing.T) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.IP.IsGlobalUnicast() && a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("address %s is tentative", a.IP)
		}
	}
	return nil
}

func TestCreateVethReplacesLeftover(t *testing.T) {
	h, i := newHost(t), podInterface(true)
	hostName, pod := makePod(t, h, i)
	if _, err := h.CreateVeth(Veth{Host: hostName, Netns: pod, Name: "eth0", MAC: podMAC, MTU: 1300}); err != nil {
		t.Fatalf("replacing the same attachment: %v", err)
	}
	_, err := h.CreateVeth(Veth{Host: HostName("other", "eth0"), Netns: pod, Name: "eth0", MAC: podMAC, MTU: 1300})
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "already has a link eth0") {
		t.Errorf("another container's veth into a namespace with eth0: %v", err)
	}
	if _, found, err := h.LinkMAC(HostName("other", "eth0")); err != nil || found {
		t.Errorf("the failed veth left its host side (%v)", err)
	}
}

func TestHostSideHasNoAddress(t *testing.T) {
	h := newHost(t)
	hostName, _ := makePod(t, h, podInterface(true))
	if err := InNetns(h.Netns, func() error {
		link, err := netlink.LinkByName(hostName)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if len(addrs) > 0 {
			t.Errorf("the host side has addresses %v", addrs)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestCheckContainerReportsEveryDifference(t *testing.T) {
	h, i := newHost(t), podInterface(true)
	_, pod := makePod(t, h, i)
	i.MTU, i.MAC = 1300, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	i.Addrs = append(i.Addrs, netip.MustParsePrefix("10.9.0.1/24"))
	i.Gateways = []netip.Addr{netip.MustParseAddr("10.1.0.2")}
	err := h.CheckContainer(pod, i)
	if err == nil {
		t.Fatal("differences were not noticed")
	}
	for _, want := range []string{"MTU 1400, want 1300", "want 02:00:00:00:00:01", "lacks address 10.9.0.1/24", "lacks the default route via 10.1.0.2"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

// newGateway makes a host with a link that stands for an OVS internal port.
func newGateway(t *testing.T, name string) (Host, Gateway) {
	t.Helper()
	h := newHost(t)
	addLink(t, h, name)
	return h, Gateway{
		Name: name, MAC: net.HardwareAddr{0x0a, 0x67, 100, 64, 0, 11}, MTU: 1442, NoOffload: true,
		Addrs: []netip.Prefix{netip.MustParsePrefix("100.64.0.11/16"), netip.MustParsePrefix("fd64::b/64")},
	}
}

func addLink(t *testing.T, h Host, name string) {
	t.Helper()
	if err := InNetns(h.Netns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
	}); err != nil {
		t.Fatal(err)
	}
}

func TestGateway(t *testing.T) {
	h, g := newGateway(t, "ovn0")
	if err := InNetns(h.Netns, func() error { // a route and an address that are to go, and a route that is not ours
		link, err := netlink.LinkByName("ovn0")
		if err != nil {
			return err
		}
		other, err := netlink.LinkByName("ovn0p")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(other), netlink.AddrAdd(link, address(netip.MustParsePrefix("100.64.0.99/16"))),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.250.0.0/16")), Protocol: RouteProtocol}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: other.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.251.0.0/16"))}))
	}); err != nil {
		t.Fatal(err)
	}
	routes := []Route{
		{Dst: netip.MustParsePrefix("10.244.0.0/16"), Via: netip.MustParseAddr("100.64.0.1"), Src: g.Addrs[0].Addr()},
		{Dst: netip.MustParsePrefix("fd00::/64"), Via: netip.MustParseAddr("fd64::1"), Src: g.Addrs[1].Addr()},
	}
	for range 2 { // the second time changes nothing
		if err := h.ConfigureGateway(g); err != nil {
			t.Fatal(err)
		}
		if blocked, err := h.SyncRoutes("ovn0", routes); err != nil || len(blocked) > 0 {
			t.Fatal(blocked, err)
		}
		checkGateway(t, h, routes)
	}
	if _, err := h.SyncRoutes("ovn0", routes[:1]); err != nil {
		t.Fatal(err)
	}
	checkGateway(t, h, routes[:1])
	if on, err := h.TXChecksum("ovn0"); err != nil || on {
		t.Errorf("TX checksum offload of ovn0 is %v (%v)", on, err)
	}
}

func checkGateway(t *testing.T, h Host, want []Route) {
	t.Helper()
	if err := InNetns(h.Netns, func() error {
		have, err := ownRoutes()
		if err != nil {
			return err
		}
		var got []Route
		for i := range have {
			got = append(got, asRoute(&have[i]))
		}
		equal := cmp.Comparer(func(a, b Route) bool { return a == b })
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Errorf("routes of our protocol (-want +got):\n%s", diff)
		}
		other, err := netlink.RouteGet(net.IPv4(10, 251, 0, 1))
		if err != nil || len(other) != 1 || other[0].LinkIndex == 0 {
			t.Errorf("somebody else's route is gone: %v, %v", other, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	addrs, err := h.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		got = append(got, a.Link+" "+a.Addr.String())
	}
	if diff := cmp.Diff([]string{"ovn0 100.64.0.11/16", "ovn0 fd64::b/64"}, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestGatewayWithoutLink(t *testing.T) {
	h := newHost(t)
	if err := h.ConfigureGateway(Gateway{Name: "ovn0"}); !errors.Is(err, ErrNoLink) {
		t.Errorf("ConfigureGateway: %v, want ErrNoLink", err)
	}
	if _, err := h.SyncRoutes("ovn0", nil); !errors.Is(err, ErrNoLink) {
		t.Errorf("SyncRoutes: %v, want ErrNoLink", err)
	}
}

func TestAddrs(t *testing.T) {
	h := newHost(t)
	addLink(t, h, "eth9")
	if err := InNetns(h.Netns, func() error {
		link, err := netlink.LinkByName("eth9")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMTU(link, 9000), netlink.LinkSetUp(link), netlink.AddrAdd(link, address(netip.MustParsePrefix("192.0.2.7/24"))))
	}); err != nil {
		t.Fatal(err)
	}
	got, err := h.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	want := []HostAddr{{Link: "eth9", Addr: netip.MustParsePrefix("192.0.2.7/24"), MTU: 9000}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestHasGenl(t *testing.T) {
	for family, want := range map[string]bool{"nlctrl": true, "no_such_family": false} {
		if got, err := HasGenl(family); err != nil || got != want {
			t.Errorf("HasGenl(%s) = %v, %v, want %v", family, got, err, want)
		}
	}
}

// TestNetnsGone: a container may end at any time.
func TestNetnsGone(t *testing.T) {
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	path := ns.Path()
	ns.Close()
	deadline := time.Now().Add(time.Minute)
	for !errors.Is(CheckNetns(path), errNoNetns) {
		if time.Now().After(deadline) {
			t.Fatal("the namespace is still there")
		}
		time.Sleep(time.Millisecond)
	}
	h := newHost(t)
	if _, err := h.CreateVeth(Veth{Host: "gw0", Netns: path, Name: "eth0", MTU: 1400}); !errors.Is(err, errNoNetns) {
		t.Errorf("CreateVeth into it: %v, want errNoNetns", err)
	}
}

// HostSides lists what CreateVeth made, with what it was told of whose it is; a link is deleted by its index alone, and not one that has its name now.
func TestHostSides(t *testing.T) {
	h := newHost(t)
	name, pod := makePod(t, h, podInterface(true))
	second := HostName("c", "net1")
	again := Veth{Host: second, Netns: pod, Name: "net1", MAC: podMAC, MTU: 1300, Alias: "godwit pod 7"}
	if _, err := h.CreateVeth(again); err != nil {
		t.Fatal(err)
	}
	index := func() int {
		sides, err := h.HostSides()
		if err != nil || len(sides) != 2 {
			t.Fatalf("host sides %+v (%v), want two", sides, err)
		}
		found := 0
		for _, s := range sides {
			switch {
			case s.Name == second && s.Alias == "godwit pod 7":
				found = s.Index
			case s.Name != name || s.Alias != "":
				t.Errorf("host side %+v", s)
			}
		}
		return found
	}
	old := index()
	if _, err := h.CreateVeth(again); err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteIndex(old); err != nil {
		t.Errorf("delete what is gone: %v", err)
	}
	now := index()
	if now == old || now == 0 {
		t.Fatalf("the new link has index %d, the old one had %d", now, old)
	}
	if err := h.DeleteIndex(now); err != nil {
		t.Fatal(err)
	}
	if sides, err := h.HostSides(); err != nil || len(sides) != 1 || sides[0].Name != name {
		t.Errorf("host sides after deletion %+v (%v), want %s", sides, err, name)
	}
}

package netdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

// useNFT lets knftables find the nft program.
func useNFT(t *testing.T) {
	t.Helper()
	root, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range root.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
}

func flushNFT(t *testing.T, h Host) {
	t.Helper()
	if err := h.do(func() error { return exec.Command("nft", "flush", "ruleset").Run() }); err != nil {
		t.Fatal(err)
	}
}

func TestMasqueradeRules(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, nftTable)
	m := Masquerade{
		Sources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.244.0.0/16")},
		Except:  []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd64::/64")}, Gateway: "ovn0",
	}
	for range 2 { // writing it again replaces, it does not add
		if err := applyMasquerade(t.Context(), fake, m); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.TrimSpace(`
add table inet godwit { comment "Godwit: pods leave under the node's address" ; }
add chain inet godwit forward { type filter hook forward priority 0 ; }
add chain inet godwit input { type filter hook input priority 0 ; }
add chain inet godwit postrouting { type nat hook postrouting priority 100 ; }
add set inet godwit direct4 { type ipv4_addr ; flags interval ; auto-merge ; }
add set inet godwit direct6 { type ipv6_addr ; flags interval ; auto-merge ; }
add set inet godwit pods4 { type ipv4_addr ; flags interval ; auto-merge ; }
add set inet godwit pods6 { type ipv6_addr ; flags interval ; auto-merge ; }
add rule inet godwit forward iifname "ovn0" udp dport 6081 drop
add rule inet godwit forward oifname != "ovn0" ct status and dnat != 0 udp dport 6081 drop
add rule inet godwit input iifname "ovn0" udp dport 6081 drop
add rule inet godwit input ct status and dnat != 0 udp dport 6081 drop
add rule inet godwit postrouting oifname != "ovn0" ip saddr @pods4 ip daddr != @direct4 masquerade
add rule inet godwit postrouting oifname != "ovn0" ip6 saddr @pods6 ip6 daddr != @direct6 masquerade
add element inet godwit direct4 { 10.244.0.0/16 }
add element inet godwit direct4 { 100.64.0.0/16 }
add element inet godwit direct6 { fd00::/64 }
add element inet godwit direct6 { fd64::/64 }
add element inet godwit pods4 { 10.244.0.0/16 }
add element inet godwit pods6 { fd00::/64 }`)
	if diff := cmp.Diff(want, strings.TrimSpace(fake.Dump())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestMasquerade sends packets through a real kernel: a "pod" behind ovn0, a "world" on the underlay.
func TestMasquerade(t *testing.T) {
	useNFT(t)
	node := newHost(t)
	pod, world := namespace(t), namespace(t)
	connect(t, node, "ovn0", "100.64.0.11/16", Host{Netns: pod.Path()}, "100.64.0.1/16")
	connect(t, node, "eth0", "192.0.2.1/24", Host{Netns: world.Path()}, "192.0.2.2/24")
	if err := pod.Do(func() error { // 10.244.0.5 is the pod's own address, and the way out is the node
		lo, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, address(netip.MustParsePrefix("10.244.0.5/32"))); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(100, 64, 0, 11), Src: net.IPv4(10, 244, 0, 5)})
	}); err != nil {
		t.Fatal(err)
	}
	if err := node.EnableForwarding([]netip.Prefix{netip.MustParsePrefix("100.64.0.11/16")}); err != nil {
		t.Fatal(err)
	}
	g := []Route{{Dst: netip.MustParsePrefix("10.244.0.0/16"), Via: netip.MustParseAddr("100.64.0.1"), Src: netip.MustParseAddr("100.64.0.11")}}
	if _, err := node.SyncRoutes("ovn0", g); err != nil {
		t.Fatal(err)
	}
	m := Masquerade{Sources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Gateway: "ovn0"}
	if err := node.Masquerade(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := seenFrom(t, Host{Netns: pod.Path()}, Host{Netns: world.Path()}, "192.0.2.2:77"); got != "192.0.2.1" {
		t.Errorf("the world saw %s, want the node's address 192.0.2.1", got)
	}
	if got := seenFrom(t, Host{Netns: pod.Path()}, node, "192.0.2.1:77"); got != "10.244.0.5" {
		t.Errorf("the node saw %s, want the pod's address 10.244.0.5", got)
	}
	m.Translations = []Translation{{Source: netip.MustParsePrefix("10.244.0.0/24"), To: netip.MustParseAddr("192.0.2.77")}}
	if _, err := node.SyncBorrowed([]Borrowed{{Link: "eth0", Addr: m.Translations[0].To}}, LongestLoan); err != nil {
		t.Fatal(err)
	}
	if err := node.Masquerade(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := seenFrom(t, Host{Netns: pod.Path()}, Host{Netns: world.Path()}, "192.0.2.2:79"); got != "192.0.2.77" {
		t.Errorf("the world saw %s, want the address that is translated to, 192.0.2.77", got)
	}
	m.Except = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	if err := node.Masquerade(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := world.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.244.0.0/16")), Gw: net.IPv4(192, 0, 2, 1)})
	}); err != nil {
		t.Fatal(err)
	}
	if got := seenFrom(t, Host{Netns: pod.Path()}, Host{Netns: world.Path()}, "192.0.2.2:78"); got != "10.244.0.5" {
		t.Errorf("an excepted destination saw %s, want the pod's address 10.244.0.5", got)
	}
}

// connect makes a veth from the node's link name to the link "far" of another namespace.
func connect(t *testing.T, node Host, name, addr string, peer Host, peerAddr string) {
	t.Helper()
	if _, err := node.CreateVeth(Veth{Host: name, Netns: peer.Netns, Name: "far", MTU: 1500}); err != nil {
		t.Fatal(err)
	}
	if err := node.do(func() error { // this one is no pod's
		return errors.Join(writeSysctl("net/ipv4/conf/"+name+"/rp_filter", "0"), writeSysctl("net/ipv4/conf/"+name+"/forwarding", "1"), writeSysctl("net/ipv4/conf/"+name+"/arp_ignore", "0"))
	}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		h          Host
		name, addr string
	}{{node, name, addr}, {peer, "far", peerAddr}} {
		if err := end.h.do(func() error {
			link, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
			return netlink.AddrAdd(link, address(netip.MustParsePrefix(end.addr)))
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// seenFrom is the address that a server at addr in one namespace sees a client in another come from.
func seenFrom(t *testing.T, client, server Host, addr string) string {
	t.Helper()
	var l net.Listener
	if err := server.do(func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, conn.RemoteAddr().(*net.TCPAddr).IP.String())
		_ = conn.Close()
	}()
	var out []byte
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := client.do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		out, err = io.ReadAll(conn)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// datagram sends one from a namespace to an address of another and reports from where it came, ok unless none did.
func datagram(t *testing.T, client, server Host, addr string) (from string, ok bool) {
	t.Helper()
	var l net.PacketConn
	if err := server.do(func() (err error) { l, err = net.ListenPacket("udp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := client.do(func() error {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("frame"))
		return errors.Join(err, conn.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, peer, err := l.ReadFrom(make([]byte, 16))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(peer.String())
	if err != nil {
		t.Fatal(err)
	}
	return host, true
}

// A pod writes what a tunnel carries, and its node would sign it with its own address.
func TestTunnelsAreNotForPods(t *testing.T) {
	useNFT(t)
	node := newHost(t)
	pod, world := namespace(t), namespace(t)
	connect(t, node, "ovn0", "100.64.0.11/16", Host{Netns: pod.Path()}, "100.64.0.12/16")
	connect(t, node, "eth0", "192.0.2.1/24", Host{Netns: world.Path()}, "192.0.2.2/24")
	if err := pod.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24")), Gw: net.IPv4(100, 64, 0, 11)})
	}); err != nil {
		t.Fatal(err)
	}
	if err := node.EnableForwarding([]netip.Prefix{netip.MustParsePrefix("100.64.0.11/16")}); err != nil {
		t.Fatal(err)
	}
	if err := node.Masquerade(t.Context(), Masquerade{Sources: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")}, Gateway: "ovn0"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		server Host
		addr   string
		want   string
	}{
		{Host{Netns: world.Path()}, "192.0.2.2:6080", "192.0.2.1"}, {Host{Netns: world.Path()}, "192.0.2.2:6081", ""},
		{node, "192.0.2.1:6080", "100.64.0.12"}, {node, "192.0.2.1:6081", ""},
	} {
		from, ok := datagram(t, Host{Netns: pod.Path()}, c.server, c.addr)
		if from != c.want || ok != (c.want != "") {
			t.Errorf("a pod's datagram to %s came from %q, want %q", c.addr, from, c.want)
		}
	}
}

// A Service whose endpoints are ends of tunnels: a node port would make anybody's datagram one of the node's. A pod's own port of that number is served.
func TestTunnelsAreNotForServices(t *testing.T) {
	w := newWorld(t, 1)
	if err := w.node.Masquerade(t.Context(), Masquerade{Sources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Gateway: "ovn0"}); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		host   Host
		at     string
		served bool
	}{
		{w.node, nodeIP + ":6081", false}, {w.outside, otherIP + ":6081", false}, {w.node, nodeIP + ":6080", true}, {w.outside, otherIP + ":6080", true}, {w.pods, podIP(0) + ":6081", true},
	} {
		asked := w.serve(c.host, "udp", c.at)
		port := uint16(30081 + i)
		w.table.Set(Frontend{Addr: netip.IPv4Unspecified(), Protocol: UDP, Port: port}, all(netip.MustParseAddrPort(c.at)))
		w.write()
		for name, client := range map[string]Host{"a pod": w.pods, "a client outside": w.outside} {
			asked.Store(0)
			want := c.served && (client != w.pods || c.host != w.pods) // what a pod sends to a tunnel's port is dropped, whoever has it
			if a, err := w.ask(client, "udp", fmt.Sprintf("%s:%d", nodeIP, port)); (err == nil) != want || (asked.Load() > 0) != want {
				t.Errorf("%s by a node port to %s: %v, %v, and %d datagrams arrived; want it served: %t", name, c.at, a, err, asked.Load(), want)
			}
		}
	}
}

// What goes on when the address is another leaves under that one, and not under what is somebody else's by now.
func TestTranslationsEnd(t *testing.T) {
	w := newWorld(t, 0)
	if err := w.node.do(func() error { return giveAddrs("eth0", []string{"192.0.2.77/32", "192.0.2.78/32"}) }); err != nil {
		t.Fatal(err)
	}
	w.serve(w.outside, "udp", outsideIP+":53")
	w.serve(w.outside, "tcp", outsideIP+":53")
	m := Masquerade{Sources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Gateway: "ovn0"}
	var former []Translation
	become := func(to string) {
		t.Helper()
		former, m.Translations = m.Translations, nil
		if to != "" {
			m.Translations = []Translation{{Source: m.Sources[0], To: netip.MustParseAddr(to)}}
		}
		if err := errors.Join(w.node.Masquerade(t.Context(), m), w.node.EndTranslated(m, former)); err != nil {
			t.Fatal(err)
		}
	}
	become("")
	conns := map[string]net.Conn{}
	for _, network := range []string{"udp", "tcp"} {
		conn, err := w.dial(w.pods, clientPod, network, outsideIP+":53")
		if err != nil {
			t.Fatal(err)
		}
		if a, err := hear(conn, network); err != nil || a.seen != nodeIP {
			t.Fatalf("%s without an egress address is seen from %v: %v", network, a, err)
		}
		conns[network] = conn
	}
	for _, c := range []struct{ to, want string }{{"192.0.2.77", "192.0.2.77"}, {"192.0.2.78", "192.0.2.78"}, {"", nodeIP}} {
		become(c.to)
		for range 2 {
			if a, err := hear(conns["udp"], "udp"); err != nil || a.seen != c.want {
				t.Errorf("with the egress address %q it goes on from %v, %v; want %s", c.to, a, err, c.want)
			}
		}
	}
	if _, err := conns["tcp"].Write([]byte("still there?")); err != nil {
		t.Fatal(err)
	}
	if a, err := hear(conns["tcp"], "tcp"); err != nil {
		t.Errorf("a connection that left under the node's address: %v, %v", a, err)
	}
}

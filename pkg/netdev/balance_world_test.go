package netdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// answer is what a backend says: which it is, and as whom it sees the client.
type answer struct{ backend, seen string }

// world is a node with pods behind ovn0, and with the outside and another node on eth0. Reverse paths are filtered strictly.
type world struct {
	t                   *testing.T
	node, pods, outside Host
	table               *Balancer
}

const (
	nodeIP, nodeIP6       = "192.0.2.1", "2001:db8::1"
	outsideIP, outsideIP6 = "192.0.2.2", "2001:db8::2"
	otherIP               = "192.0.2.3" // another node
	ownIP, ownIP6         = "100.64.0.11", "fd98::11"
	clientsIP, clientsIP6 = "100.64.0.12", "fd98::12"
	clusterIP, clusterIP6 = "10.96.0.10", "fd96::10"
	balancedIP            = "198.51.100.7" // what a load balancer leads to the node
	clientPod, clientPod6 = "10.244.250.99", "fd00:10:244::ffff"
)

func podIP(i int) string  { return fmt.Sprintf("10.244.%d.%d", i/200, i%200+5) }
func podIP6(i int) string { return fmt.Sprintf("fd00:10:244::%x", i+5) }

// newWorld has so many pods.
func newWorld(t *testing.T, pods int) *world {
	t.Helper()
	useNFT(t)
	w := &world{t: t, node: newHost(t), pods: newHost(t), outside: newHost(t)}
	w.link("ovn0", w.pods, []string{ownIP + "/16", clientsIP + "/32", ownIP6 + "/64", clientsIP6 + "/128"}, []string{"100.64.0.1/16", "fd98::1/64"})
	w.link("eth0", w.outside, []string{nodeIP + "/24", nodeIP6 + "/64"}, []string{outsideIP + "/24", otherIP + "/24", outsideIP6 + "/64"})
	own := []netip.Prefix{netip.MustParsePrefix(ownIP + "/16"), netip.MustParsePrefix(ownIP6 + "/64")}
	w.in(w.node, func() error {
		lo, err := netlink.LinkByName("lo")
		return errors.Join(err, netlink.LinkSetUp(lo), writeSysctl("net/ipv4/conf/all/rp_filter", "1"), route("default", outsideIP, ""), route("default", outsideIP6, ""))
	})
	blocked, err := w.node.SyncRoutes("ovn0", []Route{
		{Dst: netip.MustParsePrefix("10.244.0.0/16"), Via: netip.MustParseAddr("100.64.0.1"), Src: netip.MustParseAddr(ownIP)},
		{Dst: netip.MustParsePrefix("fd00:10:244::/64"), Via: netip.MustParseAddr("fd98::1"), Src: netip.MustParseAddr(ownIP6)},
	})
	if err := errors.Join(err, w.node.EnableForwarding(own)); err != nil || len(blocked) > 0 {
		t.Fatal(blocked, err)
	}
	w.in(w.pods, func() error {
		addrs := []string{clientPod + "/32", clientPod6 + "/128"}
		for i := range pods {
			addrs = append(addrs, podIP(i)+"/32", podIP6(i)+"/128")
		}
		return errors.Join(giveAddrs("far", addrs), route("default", ownIP, clientPod), route("default", ownIP6, clientPod6))
	})
	w.in(w.outside, func() error {
		return errors.Join(route("10.96.0.0/16", nodeIP, ""), route("fd96::/64", nodeIP6, ""), route(balancedIP+"/32", nodeIP, ""))
	})
	w.table = w.node.NewBalancer()
	w.table.SetPassage(Passage{
		Gateway: "ovn0", Own: []netip.Addr{netip.MustParseAddr(ownIP), netip.MustParseAddr(ownIP6)}, Clients: []netip.Addr{netip.MustParseAddr(clientsIP), netip.MustParseAddr(clientsIP6)},
	})
	return w
}

func (w *world) in(h Host, f func() error) {
	w.t.Helper()
	if err := h.do(f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) link(name string, peer Host, addrs, peerAddrs []string) {
	w.t.Helper()
	if _, err := w.node.CreateVeth(Veth{Host: name, Netns: peer.Netns, Name: "far", MTU: 1500}); err != nil {
		w.t.Fatal(err)
	}
	w.in(w.node, func() error { // this one is no pod's
		return errors.Join(writeSysctl("net/ipv4/conf/"+name+"/forwarding", "1"), writeSysctl("net/ipv4/conf/"+name+"/arp_ignore", "0"),
			writeSysctl("net/ipv4/conf/all/send_redirects", "0"), writeSysctl("net/ipv4/conf/"+name+"/send_redirects", "0"), // they count against the same limit as refusals
			writeSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0"), giveAddrs(name, addrs))
	})
	w.in(peer, func() error { return giveAddrs("far", peerAddrs) })
}

func giveAddrs(name string, addrs []string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(link, address(netip.MustParsePrefix(a))); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func route(to, via, src string) error {
	gw := netip.MustParseAddr(via)
	dst := netip.PrefixFrom(unspecified(gw), 0)
	if to != "default" {
		dst = netip.MustParsePrefix(to)
	}
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: gw.AsSlice(), Src: net.ParseIP(src)})
}

// serve lets a namespace answer at an address with the name of that and what it sees, until the test ends. It counts its clients.
func (w *world) serve(h Host, network, addr string) *atomic.Int64 {
	w.t.Helper()
	var asked atomic.Int64
	reply := func(from net.Addr) []byte {
		asked.Add(1)
		host, _, _ := net.SplitHostPort(from.String())
		return []byte(addr + " " + host)
	}
	w.in(h, func() error {
		if network == "udp" {
			conn, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { _ = conn.Close() })
			go func() {
				buf := make([]byte, 1500)
				for {
					_, from, err := conn.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = conn.WriteTo(reply(from), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = conn.Write(append(reply(conn.RemoteAddr()), '\n'))
					_, _ = io.Copy(conn, conn) // what is written comes back, for as long as it stays open
					_ = conn.Close()
				}()
			}
		}()
		return nil
	})
	return &asked
}

// servePods lets pods answer on a port.
func (w *world) servePods(pods int, port int) (four, six []netip.AddrPort) {
	w.t.Helper()
	for i := range pods {
		for _, ip := range []string{podIP(i), podIP6(i)} {
			at := netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port))
			w.serve(w.pods, "tcp", at.String())
			if at.Addr().Is4() {
				four = append(four, at)
			} else {
				six = append(six, at)
			}
		}
	}
	return four, six
}

// answered is how long an answer may take on a machine that does other things, silent how long none has come for that is not to come.
const answered, silent = 20 * time.Second, time.Second

// dial connects; src is the client's address, any if empty.
func (w *world) dial(h Host, src, network, addr string) (net.Conn, error) {
	d := net.Dialer{}
	if src != "" && network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(src)}
	} else if src != "" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(src)}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), answered)
	defer cancel()
	var conn net.Conn
	err := h.do(func() (err error) { conn, err = d.DialContext(ctx, network, addr); return err })
	return conn, err
}

// ask connects, and returns what the backend says.
func (w *world) ask(h Host, network, addr string) (answer, error) {
	conn, err := w.dial(h, "", network, addr)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = conn.Close() }()
	return hear(conn, network)
}

// isSilent says that nothing comes back of an attempt to connect.
func (w *world) isSilent(h Host, network, addr string) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), silent)
	defer cancel()
	return h.do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		switch {
		case err == nil:
			return errors.Join(fmt.Errorf("%s is connected", addr), conn.Close())
		case timedOut(err):
			return nil
		}
		return err
	})
}

// hear is what a connection's backend says; of UDP, asked once.
func hear(conn net.Conn, network string) (answer, error) {
	within := answered
	if network == "udp" {
		within = silent // some of what is asked so is not to be answered
	}
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return answer{}, err
	}
	if network == "udp" {
		if _, err := conn.Write([]byte("hello")); err != nil {
			return answer{}, err
		}
	}
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	if err != nil {
		return answer{}, err
	}
	backend, seen, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	return answer{backend, seen}, nil
}

func (w *world) write() {
	w.t.Helper()
	if _, err := w.table.Write(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func tcp(addr string, port uint16) Frontend {
	return Frontend{Addr: netip.MustParseAddr(addr), Protocol: TCP, Port: port}
}

func all(backends ...netip.AddrPort) Balance { return Balance{All: Choice{Backends: backends}} }

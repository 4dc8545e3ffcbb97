package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// TestPodsOnTwoNodes runs two agents on real OVN and Open vSwitch and checks what an administrator would: pods reach pods, nodes and the outside,
// operations are idempotent, and nothing is left.
func TestPodsOnTwoNodes(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	nodes := []*testNode{newTestNode(t, c, "one", 1), newTestNode(t, c, "two", 2)}
	pods := []*testPod{newTestPod(t, "a", 1), newTestPod(t, "b", 2), newTestPod(t, "c", 3)}
	on := []*testNode{nodes[0], nodes[0], nodes[1]}
	var p ports
	for i, n := range nodes {
		rows := topology.Node(n.Name, joinOf(i+1))
		p.nodes, p.egress = append(p.nodes, rows.Port), append(p.egress, rows.Egress...)
	}
	for i, pod := range pods {
		p.pods = append(p.pods, pod.lsp(on[i].Name))
	}
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(p)
	for _, n := range nodes {
		n.start()
	}
	for _, n := range nodes {
		n.waitReady(t)
		if got, want := n.annotations[v1alpha1.MTUAnnotation], "1442"; got != want {
			t.Errorf("annotation %s of node %s is %q, want %q: an underlay of 1500 less 58", v1alpha1.MTUAnnotation, n.Name, got, want)
		}
		if _, err := os.Stat(filepath.Join(n.cfg.CNIConfDir, confName)); err != nil {
			t.Errorf("ready node %s has no CNI configuration: %v", n.Name, err)
		}
		if _, err := n.call(t, wire.Request{Command: wire.Status}); err != nil {
			t.Errorf("STATUS of ready node %s: %v", n.Name, err)
		}
	}
	for i, pod := range pods {
		attach(t, on[i], pod)
	}
	t.Run("reach", func(t *testing.T) { testReach(t, pods, nodes) })
	t.Run("bulk", func(t *testing.T) { testBulk(t, pods, nodes) })
	t.Run("again", func(t *testing.T) { testAddAgain(t, nodes[0], pods[0]) })
	t.Run("check", func(t *testing.T) { testCheck(t, nodes[0], pods[0]) })
	t.Run("restart", func(t *testing.T) { testRestart(t, nodes[0], pods) })
	t.Run("gc", func(t *testing.T) { testGC(t, nodes[0], pods[0], pods[1]) })
	t.Run("detach", func(t *testing.T) { testDetach(t, nodes[1], pods[2]) })
}

func attach(t *testing.T, n *testNode, p *testPod) *wire.Result {
	t.Helper()
	p.pod.Spec.NodeName = n.Name
	n.pods.Add(p.pod.DeepCopy())
	start := time.Now()
	res, err := n.call(t, p.request(wire.Add))
	if err != nil {
		t.Fatalf("ADD of %s on %s: %v", p.pod.Name, n.Name, err)
	}
	t.Logf("ADD of %s on %s took %s", p.pod.Name, n.Name, time.Since(start))
	want := &wire.Result{
		Host: res.Host, Container: wire.Link{Name: "eth0", MAC: p.id.MAC.String()}, Netns: p.Path(), MTU: p.id.MTU,
		IPs: []wire.IP{{Address: p.id.IPs[0], Gateway: p.id.Gateways[0]}, {Address: p.id.IPs[1], Gateway: p.id.Gateways[1]}},
	}
	if diff := cmp.Diff(want, res, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("result of ADD (-want +got):\n%s", diff)
	}
	if mac, err := net.ParseMAC(res.Host.MAC); err != nil || len(mac) != 6 {
		t.Errorf("result of ADD has the host side's MAC address %q", res.Host.MAC)
	}
	return res
}

// place is where a server or a client runs.
type place struct {
	name string
	do   func(func() error) error
	ips  []netip.Prefix
}

// testReach opens a TCP connection between every two places, both families, and checks from whom the server thinks that it comes.
func testReach(t *testing.T, pods []*testPod, nodes []*testNode) {
	var places []place
	for _, p := range pods {
		places = append(places, place{"pod " + p.pod.Name, p.Do, p.id.IPs})
	}
	for i, n := range nodes {
		places = append(places, place{"node " + n.Name, n.Do, joinOf(i + 1).IPs}, place{"underlay " + n.Name, n.Do, n.UnderlayIPs})
	}
	for i, to := range places {
		port := 7000 + i
		stop := serveTCP(t, to, port)
		for _, from := range places {
			if from.name == to.name || from.name[:4] != "pod " && to.name[:4] != "pod " || from.name[:4] == "unde" {
				continue // between nodes the underlay is not ours to test
			}
			for f, ip := range to.ips {
				eventually(t, fmt.Sprintf("%s to %s %s", from.name, to.name, ip.Addr()), func() error {
					peer, err := dial(from, ip.Addr(), port)
					if err != nil {
						return err
					}
					want := from.ips[f].Addr()
					if to.name[:4] == "unde" && from.name[:4] == "pod " {
						return leftAs(peer, from, to, nodes, pods, f)
					}
					if peer != want {
						return fmt.Errorf("the server saw %s, want %s", peer, want)
					}
					return nil
				})
			}
		}
		stop()
	}
}

// testBulk moves more than fits any buffer: wrong MTUs and half-made checksums show in large packets, not in small ones.
func testBulk(t *testing.T, pods []*testPod, nodes []*testNode) {
	const size = 8 << 20
	to := place{"pod c", pods[2].Do, pods[2].id.IPs}
	var l net.Listener
	if err := to.do(func() (err error) { l, err = net.Listen("tcp", ":7200"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	for _, from := range []place{
		{"pod a", pods[0].Do, nil}, {"its node", nodes[1].Do, nil}, {"another node", nodes[0].Do, nil},
	} {
		for _, ip := range to.ips {
			start := time.Now()
			n, err := echo(from, netip.AddrPortFrom(ip.Addr(), 7200), size)
			if err != nil || n != size {
				t.Errorf("%s to %s: %d bytes of %d came back: %v", from.name, ip.Addr(), n, size, err)
			}
			t.Logf("%s to %s: %d MB there and back in %s", from.name, ip.Addr(), size>>20, time.Since(start).Round(time.Millisecond))
		}
	}
}

func echo(from place, to netip.AddrPort, size int) (n int64, err error) {
	err = from.do(func() error {
		conn, err := net.DialTimeout("tcp", to.String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		go func() {
			_, _ = conn.Write(make([]byte, size))
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		n, err = io.Copy(io.Discard, conn)
		return err
	})
	return n, err
}

// leftAs checks the source of a pod's connection to an underlay address: its own at its own node, its node's elsewhere.
func leftAs(peer netip.Addr, from, to place, nodes []*testNode, pods []*testPod, family int) error {
	node := nodes[0]
	if from.name == "pod "+pods[2].pod.Name {
		node = nodes[1]
	}
	want := node.UnderlayIPs[family].Addr()
	if to.name == "underlay "+node.Name {
		want = from.ips[family].Addr()
	}
	if peer != want {
		return fmt.Errorf("the server saw %s, want %s", peer, want)
	}
	return nil
}

func serveTCP(t *testing.T, at place, port int) (stop func()) {
	t.Helper()
	var l net.Listener
	if err := at.do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err }); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr().Unmap().String())
			_ = conn.Close()
		}
	}()
	return func() { _ = l.Close() }
}

func dial(from place, ip netip.Addr, port int) (peer netip.Addr, err error) {
	err = from.do(func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(ip, uint16(port)).String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		b, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		peer, err = netip.ParseAddr(string(b))
		return err
	})
	return peer, err
}

func testAddAgain(t *testing.T, n *testNode, p *testPod) {
	first, err := n.call(t, p.request(wire.Add))
	if err != nil {
		t.Fatal(err)
	}
	second, err := n.call(t, p.request(wire.Add))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fmt.Sprint(first), fmt.Sprint(second)); diff != "" {
		t.Errorf("second ADD of an attached container (-first +second):\n%s", diff)
	}
}

func testCheck(t *testing.T, n *testNode, p *testPod) {
	req := p.request(wire.Check)
	if _, err := n.call(t, req); err != nil {
		t.Errorf("CHECK of an attached container: %v", err)
	}
	req.ContainerID = "unknown"
	if _, err := n.call(t, req); err == nil {
		t.Error("CHECK of an unknown container succeeded")
	}
}

// testRestart checks that an agent that starts anew leaves running pods alone.
func testRestart(t *testing.T, n *testNode, pods []*testPod) {
	before := portNames(t, n)
	n.end()
	n.start()
	n.waitReady(t)
	if diff := cmp.Diff(before, portNames(t, n)); diff != "" {
		t.Errorf("ports after a restart (-before +after):\n%s", diff)
	}
	for _, p := range pods[:2] {
		if _, err := n.call(t, p.request(wire.Check)); err != nil {
			t.Errorf("CHECK of %s after a restart: %v", p.pod.Name, err)
		}
	}
}

func testGC(t *testing.T, n *testNode, keep, drop *testPod) {
	gc := wire.Request{Command: wire.GC, Conf: "other"}
	if _, err := n.call(t, gc); err != nil {
		t.Fatal(err)
	}
	if got := len(portNames(t, n)); got != 2 {
		t.Fatalf("GC of another configuration left %d ports, want both", got)
	}
	gc.Conf, gc.Valid = "godwit", []wire.Attachment{{ContainerID: keep.request(wire.Del).ContainerID, IfName: "eth0"}}
	if _, err := n.call(t, gc); err != nil {
		t.Fatal(err)
	}
	if _, err := n.call(t, keep.request(wire.Check)); err != nil {
		t.Errorf("CHECK of what GC keeps: %v", err)
	}
	if _, err := n.call(t, drop.request(wire.Check)); err == nil {
		t.Error("CHECK of what GC removed succeeded")
	}
	if got := len(portNames(t, n)); got != 1 {
		t.Errorf("GC left %d ports, want 1", got)
	}
}

func testDetach(t *testing.T, n *testNode, p *testPod) {
	req := p.request(wire.Del)
	for range 2 { // the second time there is nothing
		if _, err := n.call(t, req); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if got := portNames(t, n); len(got) != 0 {
		t.Errorf("after DEL there are still ports %v", got)
	}
	err := p.Do(func() error { _, err := net.InterfaceByName("eth0"); return err })
	var opErr *net.OpError
	if !errors.As(err, &opErr) {
		t.Errorf("after DEL the container still has eth0 (%v)", err)
	}
}

func portNames(t *testing.T, n *testNode) []string {
	t.Helper()
	ports, err := n.agent.state.db.PodPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range ports {
		out = append(out, p.Name)
	}
	return out
}

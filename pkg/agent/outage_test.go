package agent

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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// cluster is nodes with agents, and a network in NB that has ports for them and for the pods.
func cluster(t *testing.T, names []string, pods map[*testPod]string) []*testNode {
	t.Helper()
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	var nodes []*testNode
	var p ports
	for i, name := range names {
		nodes = append(nodes, newTestNode(t, c, name, i+1))
		rows := topology.Node(name, joinOf(i+1))
		p.nodes, p.egress = append(p.nodes, rows.Port), append(p.egress, rows.Egress...)
	}
	for pod, node := range pods {
		p.pods = append(p.pods, pod.lsp(node))
	}
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(p)
	return nodes
}

func TestPodOfAnotherNodeIsRefused(t *testing.T) {
	pod := newTestPod(t, "a", 1)
	nodes := cluster(t, []string{"one", "two"}, map[*testPod]string{pod: "one"})
	nodes[1].start()
	nodes[1].waitReady(t)
	nodes[1].pods.Add(pod.pod.DeepCopy())
	_, err := nodes[1].callFor(t, 8*time.Second, pod.request(wire.Add))
	if err == nil || !strings.Contains(err.Error(), "OVN did not bind port pod/ns/a/default here") {
		t.Errorf("ADD on a chassis that the port does not request: %v", err)
	}
	if got := portNames(t, nodes[1]); len(got) != 0 {
		t.Errorf("the failed ADD left ports %v", got)
	}
	if links := nodes[1].podLinks(t); len(links) != 0 {
		t.Errorf("the failed ADD left links %v", links)
	}
}

func (n *testNode) podLinks(t *testing.T) (names []string) {
	t.Helper()
	if err := n.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if strings.HasPrefix(l.Name, "gw") {
				names = append(names, l.Name)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestNodeFollowsItsInputs starts with nothing and brings the inputs one after another, then changes each.
func TestNodeFollowsItsInputs(t *testing.T) {
	pod := newTestPod(t, "a", 1)
	n := cluster(t, []string{"one"}, map[*testPod]string{pod: "one"})[0]
	n.node.Annotations = map[string]string{}
	n.nodes.Modify(n.node.DeepCopy())
	n.start()
	eventually(t, "what is missing", func() error { return contains(n.agent.ready.err(), "Node one has no annotation godwit.dev/join") })
	if _, err := os.Stat(filepath.Join(n.cfg.CNIConfDir, confName)); err == nil {
		t.Error("a node that is not ready has a CNI configuration")
	}
	added := make(chan error, 1)
	n.pods.Add(pod.pod.DeepCopy())
	go func() {
		_, err := n.call(t, pod.request(wire.Add))
		added <- err
	}()
	n.change(func(node *corev1.Node) { node.Annotations[v1alpha1.JoinAnnotation] = joinOf(1).Text() })
	if err := <-added; err != nil {
		t.Errorf("ADD that came before the node was ready: %v", err)
	}
	n.waitReady(t)

	n.subnets.Add(&v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "unjudged"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.249.0.0/16"}}})
	n.subnets.Add(subnet("refused", metav1.ConditionFalse, v1alpha1.ReasonOverlaps, "10.248.0.0/16"))
	n.subnets.Add(subnet("own", metav1.ConditionTrue, "InNetwork", "172.30.0.0/16")) // the underlay
	n.subnets.Add(subnet("more", metav1.ConditionFalse, v1alpha1.ReasonInvalid, "10.250.0.0/16"))
	eventually(t, "route of a new Subnet", func() error { return n.hasRoutes("10.250.0.0/16", 1) })
	eventually(t, "masquerade of a new Subnet", func() error { return n.hasElement("pods4", "10.250.0.0/16") })
	for _, cidr := range []string{"10.249.0.0/16", "10.248.0.0/16", "172.30.0.0/16"} {
		if err := n.hasRoutes(cidr, 0); err != nil {
			t.Errorf("a Subnet that is not in the network: %v", err)
		}
	}
	n.subnets.Delete(subnet("more", metav1.ConditionTrue, ""))
	eventually(t, "route of a deleted Subnet", func() error { return n.hasRoutes("10.250.0.0/16", 0) })

	if err := n.Do(func() error { return exec.Command("nft", "flush", "ruleset").Run() }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "masquerade after a flush", func() error { return n.hasElement("pods4", podSpec.CIDRs[0].String()) })
	if err := n.Do(deleteOurRoute); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a route that somebody deleted", func() error { return n.hasRoutes(podSpec.CIDRs[0].String(), 1) })

	// The node gets another address, first in the kernel, then in the API.
	other := netip.MustParsePrefix("172.30.1.77/24")
	if err := n.Do(func() error { return addAddr(ovntest.Underlay, other) }); err != nil {
		t.Fatal(err)
	}
	n.change(func(node *corev1.Node) { node.Status.Addresses[1].Address = other.Addr().String() })
	eventually(t, "tunnel's address", func() error { return n.hasEncapIP(t, other.Addr().String()) })
	n.setMTU(t, ovntest.Underlay, 1400)
	eventually(t, "MTU of a smaller underlay", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if got := n.annotations[v1alpha1.MTUAnnotation]; got != "1342" {
			return fmt.Errorf("annotation is %q, want 1342", got)
		}
		return nil
	})
	eventually(t, "MTU of ovn0", func() error { return n.hasMTU(ident.GatewayInterface, 1342) })
}

func contains(err error, want string) error {
	if err == nil || !strings.Contains(err.Error(), want) {
		return fmt.Errorf("%q does not say %q", fmt.Sprint(err), want)
	}
	return nil
}

// change changes the Node as others do.
func (n *testNode) change(f func(*corev1.Node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.node)
	n.nodes.Modify(n.node.DeepCopy())
}

func (n *testNode) hasRoutes(dst string, want int) error {
	return n.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: netdev.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return err
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Dst == nil || r.Dst.String() != dst })
		if len(routes) != want {
			return fmt.Errorf("%d routes to %s, want %d", len(routes), dst, want)
		}
		return nil
	})
}

func deleteOurRoute() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: netdev.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) == 0 {
		return errors.Join(err, errors.New("no route of ours"))
	}
	return netlink.RouteDel(&routes[0])
}

func (n *testNode) hasElement(set, key string) error {
	return n.Do(func() error {
		nft, err := knftables.New(knftables.InetFamily, "godwit")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Second)
		defer cancel()
		elements, err := nft.ListElements(ctx, "set", set)
		if err != nil {
			return err
		}
		for _, e := range elements {
			if e.Key[0] == key {
				return nil
			}
		}
		return fmt.Errorf("set %s has no element %s", set, key)
	})
}

func addAddr(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, addr)
}

func (n *testNode) hasEncapIP(t *testing.T, want string) error {
	out, err := n.tool(t, "ovs-vsctl", "--db="+n.Endpoint, "get", "open_vswitch", ".", "external_ids:ovn-encap-ip").Output()
	if got := strings.Trim(string(out), "\"\n"); err != nil || got != want {
		return fmt.Errorf("ovn-encap-ip is %s (%w), want %s", got, err, want)
	}
	return nil
}

func (n *testNode) tool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	root, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return root.Command(t.Context(), name, args...)
}

// setMTU changes an internal port's MTU where Open vSwitch keeps it.
func (n *testNode) setMTU(t *testing.T, link string, mtu int) {
	t.Helper()
	if out, err := n.tool(t, "ovs-vsctl", "--db="+n.Endpoint, "set", "interface", link, fmt.Sprintf("mtu_request=%d", mtu)).CombinedOutput(); err != nil {
		t.Fatalf("set MTU: %v: %s", err, out)
	}
}

func (n *testNode) hasMTU(link string, want int) error {
	return n.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		if l.MTU != want {
			return fmt.Errorf("%s has MTU %d, want %d", link, l.MTU, want)
		}
		return nil
	})
}

// TestSwitchRestart ends ovs-vswitchd so that ovn0 vanishes with it, and starts it again.
func TestSwitchRestart(t *testing.T) {
	a, b := newTestPod(t, "a", 1), newTestPod(t, "b", 2)
	n := cluster(t, []string{"one"}, map[*testPod]string{a: "one", b: "one"})[0]
	n.start()
	n.waitReady(t)
	attach(t, n, a)
	ctl := filepath.Join(n.RunDir, "ovs-vswitchd.ctl")
	if out, err := n.tool(t, "ovs-appctl", "-t", ctl, "exit", "--cleanup").CombinedOutput(); err != nil {
		t.Fatalf("end ovs-vswitchd: %v: %s", err, out)
	}
	eventually(t, "ovn0 is gone", func() error {
		if err := n.hasMTU(ident.GatewayInterface, 0); !strings.Contains(fmt.Sprint(err), "no such network interface") {
			return fmt.Errorf("want no link ovn0: %w", err)
		}
		return nil
	})
	eventually(t, "STATUS tells", func() error {
		_, err := n.call(t, wire.Request{Command: wire.Status})
		return contains(err, "no such link: ovn0")
	})
	cmd := n.tool(t, "ovs-vswitchd", "--unixctl="+ctl, n.Endpoint)
	cmd.Env = append(cmd.Env, "OVS_RUNDIR="+n.RunDir, "OVS_LOGDIR="+n.RunDir, "OVS_SYSCONFDIR="+n.RunDir)
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	start := time.Now()
	eventually(t, "ovn0 is back", func() error { return n.hasMTU(ident.GatewayInterface, 1442) })
	t.Logf("ovn0 is back %s after the switch's start", time.Since(start))
	// The underlay's addresses went with the switch too; what gave them to it would do so again.
	eventually(t, "underlay is back", func() error { return n.hasMTU(ovntest.Underlay, 1500) })
	for _, p := range n.UnderlayIPs {
		if err := n.Do(func() error { return addAddr(ovntest.Underlay, p) }); err != nil {
			t.Fatal(err)
		}
	}
	n.waitReady(t)
	attach(t, n, b)
	node := place{"node one", n.Do, joinOf(1).IPs}
	stop := serveTCP(t, node, 7100)
	defer stop()
	for _, p := range []*testPod{a, b} {
		for f, ip := range node.ips {
			eventually(t, "pod "+p.pod.Name+" reaches its node", func() error {
				peer, err := dial(place{"pod", p.Do, p.id.IPs}, ip.Addr(), 7100)
				if err == nil && peer != p.id.IPs[f].Addr() {
					err = fmt.Errorf("the node saw %s", peer)
				}
				return err
			})
		}
	}
}

// TestDatabaseHangs: a node without its database is not ready, and an attachment waits for it.
func TestDatabaseHangs(t *testing.T) {
	a := newTestPod(t, "a", 1)
	n := cluster(t, []string{"one"}, map[*testPod]string{a: "one"})[0]
	n.start()
	n.waitReady(t)
	thaw := n.FreezeDatabase(t)
	eventually(t, "the node is not ready", func() error { return contains(n.agent.ready.err(), compOVS+": ") })
	a.pod.Spec.NodeName = n.Name
	n.pods.Add(a.pod.DeepCopy())
	attached := make(chan error, 1)
	go func() {
		_, err := n.call(t, a.request(wire.Add))
		attached <- err
	}()
	select {
	case err := <-attached:
		t.Errorf("a pod was attached, or refused, without a database: %v", err)
	case <-time.After(time.Second):
	}
	thaw()
	n.waitReady(t)
	if err := <-attached; err != nil {
		t.Error(err)
	}
}

// TestHostPort sends a client's packets to a hostPort with strict reverse path filtering, as chained portmap would translate them.
func TestHostPort(t *testing.T) {
	pod := newTestPod(t, "a", 1)
	nodes := cluster(t, []string{"one", "two"}, map[*testPod]string{pod: "one"})
	for _, n := range nodes {
		n.start()
		n.waitReady(t)
	}
	attach(t, nodes[0], pod)
	if err := nodes[0].Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0); err != nil {
			return err
		}
		return forwardPort(t, 8080, netip.AddrPortFrom(pod.id.IPs[0].Addr(), 80))
	}); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if err := pod.Do(func() (err error) { l, err = net.Listen("tcp", ":80"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
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
	client := place{"underlay two", nodes[1].Do, nodes[1].UnderlayIPs}
	eventually(t, "hostPort", func() error {
		peer, err := dial(client, nodes[0].UnderlayIPs[0].Addr(), 8080)
		if err == nil && peer != client.ips[0].Addr() {
			err = fmt.Errorf("the pod saw %s, want the client's own address %s", peer, client.ips[0].Addr())
		}
		return err
	})
}

func forwardPort(t *testing.T, port int, to netip.AddrPort) error {
	nft, err := knftables.New(knftables.IPv4Family, "portmap")
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name: "prerouting", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PreroutingHook), Priority: knftables.PtrTo(knftables.DNATPriority),
	})
	tx.Add(&knftables.Rule{Chain: "prerouting", Rule: fmt.Sprintf("iifname != ovn0 tcp dport %d dnat to %s", port, to)})
	return nft.Run(t.Context(), tx)
}

// TestManyPodsAtOnce attaches and detaches a node's worth of pods in parallel.
func TestManyPodsAtOnce(t *testing.T) {
	const count = 30
	pods := map[*testPod]string{}
	for i := range count {
		pods[newTestPod(t, fmt.Sprintf("p%d", i), i)] = "one"
	}
	n := cluster(t, []string{"one"}, pods)[0]
	n.start()
	n.waitReady(t)
	for p := range pods {
		n.pods.Add(p.pod.DeepCopy())
	}
	each := func(cmd wire.Command) (took time.Duration) {
		start := time.Now()
		var wg sync.WaitGroup
		for p := range pods {
			wg.Go(func() {
				if _, err := n.call(t, p.request(cmd)); err != nil {
					t.Errorf("%s of %s: %v", cmd, p.pod.Name, err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	added := each(wire.Add)
	if got := len(portNames(t, n)); got != count {
		t.Errorf("%d ports, want %d", got, count)
	}
	each(wire.Check)
	deleted := each(wire.Del)
	t.Logf("%d pods at once: ADD %s, DEL %s", count, added, deleted)
	if got := portNames(t, n); len(got) != 0 {
		t.Errorf("ports %v are left", got)
	}
	if links := n.podLinks(t); len(links) != 0 {
		t.Errorf("links %v are left", links)
	}
}

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// outsidePorts are free on the outside machine, whose own servers have the usual ones.
var outsidePorts = traffic.Ports{Echo: 1007, Sink: 1009, Source: 1019, Probe: 1007, Control: 1008}

// A VM holds connections to the outside while it moves away and on to a third node. They all live, and the outside sees them come from the node on which the VM started.
func TestEgressAnchor(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "egress-anchor", Node: "node1"})
	first := vm.node(t)
	leavesThrough(t, vm, first, first)
	ns, err := cluster.Namespace("outside")
	if err != nil {
		t.Fatal(err)
	}
	server, err := traffic.Listen(t.Context(), traffic.ServerConfig{Place: traffic.Place{Namespace: ns}, Ports: outsidePorts, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("the outside's server: %v", err)
		}
	}()
	guest := traffic.NewClient(podPlace(t, peer(t, "node3")), netip.AddrPortFrom(vm.ips[0], traffic.ControlPort))
	spec := traffic.Spec{
		Peers: cluster.OutsideIPs(), Ports: outsidePorts, Echo: traffic.Echoing{Connections: 4}, Upload: traffic.Bulk{Connections: 2, Rate: 50_000}, Download: traffic.Bulk{Connections: 2, Rate: 50_000},
		Silence: traffic.Duration{Duration: time.Minute},
	}
	run, err := guest.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.AwaitOpen(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	sources(t, cluster.NodeIPs(first))
	vm.migrate(t, lab.MigrateOptions{To: "node2"})
	vm.migrate(t, lab.MigrateOptions{To: "node3"})
	time.Sleep(2 * time.Second) // they go on where it is now, or stall
	window := watched()
	goOn(t, window, func(ctx context.Context) (time.Duration, error) {
		status, err := guest.Status(ctx, run)
		return status.Idle.Duration, err
	})
	sources(t, cluster.NodeIPs(first))
	result, err := guest.Stop(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range result.Connections {
		t.Logf("%s to %s: %d bytes, longest stall %s", c.Kind, c.Peer, c.Bytes, c.Stall.Length().Round(time.Millisecond))
		if c.Broken != "" || c.Bytes == 0 || c.Stall.Open && c.Stall.Length() > window*4/5 {
			t.Errorf("a connection to the outside broke: %+v", c)
		}
	}
	leavesThrough(t, vm, first, "node3")
	consistent(t)
}

// leavesThrough waits until the VM's Port says that it leaves the cluster through a node, and where it is.
func leavesThrough(t *testing.T, vm *machine, egress, at string) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if port := vmsPort(ctx, t, vm); port.Status.EgressNode != egress || port.Status.Node != at {
			return fmt.Errorf("the VM is on %s and leaves through %q by its Port, want %s and %s", port.Status.Node, port.Status.EgressNode, at, egress)
		}
		return nil
	})
}

// sources fails the test unless the outside sees connections from these addresses, all of them in the end, and from no other.
func sources(t *testing.T, want []netip.Addr) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if seen := sourcesSeen(ctx, t, want); len(seen) != len(want) {
			return fmt.Errorf("the outside sees connections from %v, want %v", seen, want)
		}
		return nil
	})
}

// sourcesSeen counts the connections that the outside sees, by their source.
func sourcesSeen(ctx context.Context, t *testing.T, want []netip.Addr) map[netip.Addr]int {
	t.Helper()
	out, err := cluster.Outside(ctx, "ss", "-Htn", "state", "established", fmt.Sprintf("( sport = :%d or sport = :%d or sport = :%d )", outsidePorts.Echo, outsidePorts.Sink, outsidePorts.Source))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]int{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		ap, err := netip.ParseAddrPort(f[len(f)-1])
		if err != nil {
			t.Fatalf("ss says %q: %v", line, err)
		}
		seen[ap.Addr().Unmap()]++
	}
	for ip, n := range seen {
		if !slices.Contains(want, ip) {
			t.Errorf("the outside sees %d connections from %s, want %v", n, ip, want)
		}
	}
	return seen
}

// vmsPort is the Port of a VM's interface.
func vmsPort(ctx context.Context, t *testing.T, vm *machine) *v1alpha1.Port {
	t.Helper()
	var list v1alpha1.PortList
	if err := cluster.api.List(ctx, &list, client.InNamespace(vm.Namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].Spec.Target.Name == vm.Name {
			return &list.Items[i]
		}
	}
	t.Fatalf("VM %s has no Port", vm)
	return nil
}

// subnetFor makes a Subnet, and a namespace whose pods are in it. Both go with the test.
func subnetFor(t *testing.T, name, third string, egress *v1alpha1.Egress) (ns string) {
	t.Helper()
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, ip := range cluster.OutsideIPs() {
		cidr := "10." + third + ".0.0/24"
		if ip.Is6() {
			cidr = "fd00:10:" + third + "::/64"
		}
		s.Spec.CIDRs = append(s.Spec.CIDRs, cidr)
	}
	s.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"test": name}}
	s.Spec.Egress = egress
	if err := cluster.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.api.Delete(context.WithoutCancel(t.Context()), s); err != nil {
			t.Errorf("delete Subnet %s: %v", name, err)
		}
	})
	known(t, name)
	return namespace(t, map[string]string{"test": name})
}

// known waits until the controller has seen a Subnet: of a pod that it sees earlier the namespace is in another.
func known(t *testing.T, subnet string) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		var s v1alpha1.Subnet
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: subnet}, &s); err != nil || s.Status.AvailableIPs == 0 {
			return fmt.Errorf("Subnet %s has no addresses to give yet: %+v %w", subnet, s.Status, err)
		}
		return nil
	})
}

func setEgress(t *testing.T, subnet string, egress *v1alpha1.Egress) {
	t.Helper()
	patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/spec/egress", "value": egress}})
	if err != nil {
		t.Fatal(err)
	}
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: subnet}}
	if err := cluster.api.Patch(t.Context(), s, client.RawPatch(types.JSONPatchType, patch)); err != nil {
		t.Fatal(err)
	}
}

// seenBy is the address under which an echo server sees a client.
func seenBy(ctx context.Context, from traffic.Place, server netip.Addr) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, patience(300*time.Millisecond))
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(server, 7).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return netip.Addr{}, err
	}
	if _, err := fmt.Fprintln(conn, "godwit"); err != nil {
		return netip.Addr{}, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return netip.Addr{}, err
	}
	word, _, _ := strings.Cut(line, " ")
	return netip.ParseAddr(word)
}

// outsideSees waits until the outside sees a pod under a node's addresses, or not at all if the node is empty.
func outsideSees(t *testing.T, from traffic.Place, node string) {
	t.Helper()
	if node != "" {
		outsideSeesAs(t, from, cluster.NodeIPs(node))
		return
	}
	for _, ip := range cluster.OutsideIPs() {
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			if got, err := seenBy(ctx, from, ip); err == nil {
				return fmt.Errorf("%s sees the pod, from %s", ip, got)
			}
			return nil
		})
	}
}

// outsideSeesAs waits until the outside sees a pod under these addresses, IPv4 first.
func outsideSeesAs(t *testing.T, from traffic.Place, want []netip.Addr) {
	t.Helper()
	for i, ip := range cluster.OutsideIPs() {
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			got, err := seenBy(ctx, from, ip)
			if err == nil && got != want[i] {
				err = fmt.Errorf("%s sees %s, want %s", ip, got, want[i])
			}
			return err
		})
	}
}

// egressAddresses are free on the network of the outside.
func egressAddresses() []netip.Addr {
	var out []netip.Addr
	for _, ip := range cluster.OutsideIPs() {
		out = append(out, ip.Next().Next())
	}
	return out
}

// selecting is the egress of the Subnet of TestEgressGateway.
func selecting(addresses []netip.Addr) *v1alpha1.Egress {
	e := &v1alpha1.Egress{Mode: v1alpha1.EgressGateway, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"egress": "test"}}}
	for _, a := range addresses {
		e.Addresses = append(e.Addresses, a.String())
	}
	return e
}

// In a Subnet without egress pods are ready, reach pods, nodes and the API server, and nothing else; and what changes is in force at once.
func TestEgressNone(t *testing.T) {
	ns := subnetFor(t, "egress-none", "61", &v1alpha1.Egress{Mode: v1alpha1.EgressNone})
	other := namespace(t, nil)
	create(t, server(ns, "shut", "node1"), server(other, "pod", "node2"), onHost(other, "host", "node3"))
	shut := ready(t, ns, 1)["shut"] // a probe of the kubelet's has answered
	open := ready(t, other, 2)["pod"]
	place := podPlace(t, shut)
	outsideSees(t, place, "")
	reachEachOther(t, shut, open)
	for i := range cluster.OutsideIPs() {
		for _, node := range []string{"node1", "node3"} {
			dials(t, place, netip.AddrPortFrom(cluster.NodeIPs(node)[i], 10250)) // its kubelet
		}
	}
	dials(t, place, apiServer(t))
	setEgress(t, "egress-none", &v1alpha1.Egress{Mode: v1alpha1.EgressNode})
	outsideSees(t, place, "node1")
	setEgress(t, "egress-none", &v1alpha1.Egress{Mode: v1alpha1.EgressNone})
	outsideSees(t, place, "")
}

// dials waits until a pod can connect.
func dials(t *testing.T, from traffic.Place, to netip.AddrPort) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience(2*time.Second))
		defer cancel()
		conn, err := from.Dial(ctx, "tcp", to.String())
		if err != nil {
			return fmt.Errorf("a pod cannot connect to %s: %w", to, err)
		}
		return conn.Close()
	})
}

// apiServer is where the Service kubernetes leads.
func apiServer(t *testing.T) netip.AddrPort {
	t.Helper()
	out, err := kubectl(t.Context(), "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "jsonpath={.items[0].endpoints[0].addresses[0]} {.items[0].ports[0].port}")
	if err != nil {
		t.Fatal(err)
	}
	ip, port, _ := strings.Cut(out, " ")
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	ap, err := netip.ParseAddrPort(ip + ":" + port)
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// failOver is within how long pods must leave the cluster again when their gateway has crashed, on an idle machine. memberSilence is how much longer that takes at most if a member of OVN's databases crashed
// with it: an election, and everybody who was connected with that member first waits for a word of it.
const (
	failOver      = 5 * time.Second
	memberSilence = 30 * time.Second
)

// failsOver is within how long pods must leave the cluster again when this gateway has crashed, on any machine.
func failsOver(gateway string) time.Duration {
	limit := patience(failOver)
	if slices.Contains(cluster.Central(), gateway) {
		limit += memberSilence
	}
	return limit
}

// All pods of a Subnet leave through one of the nodes that it selects, under the Subnet's addresses if it has some; when that crashes, through the other, in good time and
// under the same addresses. They stay there when it is back.
func TestEgressGateway(t *testing.T) {
	label(t, "node2", "node3")
	ns := subnetFor(t, "egress-gateway", "62", selecting(nil))
	create(t, server(ns, "a", "node1"), server(ns, "b", "node1"))
	pods := ready(t, ns, 2)
	a, b := podPlace(t, pods["a"]), podPlace(t, pods["b"])
	active := gatewayOf(t, "")
	outsideSees(t, a, active)
	outsideSees(t, b, active)
	dials(t, a, apiServer(t))
	own := egressAddresses()
	setEgress(t, "egress-gateway", selecting(own))
	outsideSeesAs(t, a, own)
	standby := map[string]string{"node2": "node3", "node3": "node2"}[active]
	crashed := time.Now()
	if err := cluster.Node(active).Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also when the test fails: the others need the node
		if err := cluster.Node(active).Start(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	for ip, took := range backAs(t, a, own, crashed) {
		t.Logf("%s sees the pod again %s after the crash of %s, from %s", ip, took.Round(10*time.Millisecond), active, standby)
		if limit := failsOver(active); took > limit {
			t.Errorf("it took %s, want %s at most", took, limit)
		}
	}
	gatewayOf(t, standby)
	if err := cluster.Node(active).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	beatsAgain(t, active)
	time.Sleep(v1alpha1.EgressPatience)
	gatewayOf(t, standby)
	outsideSeesAs(t, b, own)
	setEgress(t, "egress-gateway", selecting(nil))
	outsideSees(t, b, standby)
	t.Run("cordoned", func(t *testing.T) {
		if _, err := kubectl(t.Context(), "cordon", standby); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := kubectl(context.WithoutCancel(t.Context()), "uncordon", standby); err != nil {
				t.Error(err)
			}
		})
		outsideSees(t, a, active)
	})
}

// backAs says how long after since the outside's addresses saw a pod again under its own. Each is asked anew all the time: TCP's own patience is none of the network's.
func backAs(t *testing.T, from traffic.Place, want []netip.Addr, since time.Time) map[netip.Addr]time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(time.Minute))
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	took := map[netip.Addr]time.Duration{}
	for i, ip := range cluster.OutsideIPs() {
		all.Go(func() {
			for ctx.Err() == nil {
				short, done := context.WithTimeout(ctx, busy(500*time.Millisecond))
				got, err := seenBy(short, from, ip)
				done()
				if err == nil && got == want[i] {
					mu.Lock()
					defer mu.Unlock()
					took[ip] = time.Since(since)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	all.Wait()
	if len(took) != len(cluster.OutsideIPs()) {
		t.Fatalf("of the outside's addresses only these see the pod again, as %v: %v", want, took)
	}
	return took
}

// label marks nodes for the test.
func label(t *testing.T, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		if _, err := kubectl(t.Context(), "label", "node", n, "egress=test"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := kubectl(context.WithoutCancel(t.Context()), "label", "node", n, "egress-"); err != nil {
				t.Error(err)
			}
		})
	}
}

// gatewayOf waits until the test's Subnet has a gateway, this one unless it is empty.
func gatewayOf(t *testing.T, want string) (node string) {
	t.Helper()
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		var s v1alpha1.Subnet
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: "egress-gateway"}, &s); err != nil {
			return err
		}
		node = s.Status.EgressNode
		for _, c := range s.Status.Conditions {
			if c.Type == v1alpha1.ConditionEgress && c.Status == metav1.ConditionTrue && node != "" && (want == "" || node == want) {
				return nil
			}
		}
		return fmt.Errorf("the Subnet leaves through %q, want %q: %+v", node, want, s.Status.Conditions)
	})
	return node
}

// beatsAgain waits until a node that was started is ready, and says that it can be a gateway.
func beatsAgain(t *testing.T, node string) {
	t.Helper()
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		var n corev1.Node
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: node}, &n); err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return errors.New(node + " is not ready")
			}
		}
		out, err := kubectl(ctx, "-n", lab.Namespace, "get", "lease", v1alpha1.EgressLease(node), "-o", "jsonpath={.spec.renewTime} {.spec.leaseDurationSeconds}")
		if err != nil {
			return err
		}
		text, _, _ := strings.Cut(out, " ")
		at, err := time.Parse(time.RFC3339Nano, text)
		if err == nil && time.Since(at) > v1alpha1.EgressPatience {
			err = fmt.Errorf("the Lease of %s was renewed at %s", node, at)
		}
		return err
	})
}

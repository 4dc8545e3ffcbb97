package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

var (
	joinSpec = ipam.Spec{
		CIDRs:    []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd64::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd64::1")},
	}
	podSpec = ipam.Spec{
		CIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")},
	}
)

// northbound writes the rows that the controller would.
type northbound struct {
	t  testing.TB
	db client.Client
}

func (nb *northbound) connect(c *ovntest.OVNCentral) {
	t := nb.t
	t.Helper()
	m, err := nbdb.FullDatabaseModel()
	if err != nil {
		t.Fatal(err)
	}
	db, err := client.NewOVSDBClient(m, client.WithEndpoint(c.NB))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	nb.db = db
}

func (nb *northbound) transact(rows ...model.Model) {
	nb.t.Helper()
	var ops []ovsdb.Operation
	for _, row := range rows {
		op, err := nb.db.Create(row)
		if err != nil {
			nb.t.Fatal(err)
		}
		ops = append(ops, op...)
	}
	results, err := nb.db.Transact(nb.t.Context(), ops...)
	if err != nil {
		nb.t.Fatal(err)
	}
	for i, r := range results {
		if r.Error != "" {
			nb.t.Fatalf("NB operation %d: %s: %s", i, r.Error, r.Details)
		}
	}
}

// ports are what the test's switches have.
type ports struct {
	nodes, pods []*nbdb.LogicalSwitchPort
	egress      []*nbdb.LogicalRouterPolicy
	// more are rows that the others refer to.
	more []model.Model
}

// write makes the network with the ports; once.
func (nb *northbound) write(p ports) {
	nb.t.Helper()
	network, subnet := topology.Network(ident.DefaultNetwork, joinSpec), topology.Subnet("pods", podSpec, topology.DHCP{})
	rows := p.more
	n := 0
	id := func() string { n++; return fmt.Sprintf("r%d", n) }
	router := network.Router
	for _, s := range []struct {
		rows  topology.SwitchRows
		ports []*nbdb.LogicalSwitchPort
	}{{network.Join, p.nodes}, {subnet, p.pods}} {
		s.rows.RouterPort.UUID = id()
		router.Ports = append(router.Ports, s.rows.RouterPort.UUID)
		rows = append(rows, s.rows.RouterPort, s.rows.Switch)
		s.rows.Switch.UUID = id()
		for _, lsp := range append(s.ports, s.rows.Uplink) {
			lsp.UUID = id()
			s.rows.Switch.Ports = append(s.rows.Switch.Ports, lsp.UUID)
			rows = append(rows, lsp)
		}
		p.egress = append(p.egress, s.rows.Inside...)
	}
	for _, policy := range p.egress {
		policy.UUID = id()
		router.Policies = append(router.Policies, policy.UUID)
		rows = append(rows, policy)
	}
	for _, route := range network.DefaultRoutes {
		route.UUID = id()
		router.StaticRoutes = append(router.StaticRoutes, route.UUID)
		rows = append(rows, route)
	}
	router.UUID = id()
	nb.transact(append(rows, router)...)
}

// testNode is a host with an agent whose API objects are the test's.
type testNode struct {
	*ovntest.OVSHost
	nodes, pods, subnets    *cachetesting.FakeControllerSource
	services, slices, ports *cachetesting.FakeControllerSource
	records                 *records
	node                    *corev1.Node
	cfg                     Config
	certificates            Certificates
	agent                   *Agent
	// tune changes an agent before it runs; nil: not.
	tune func(*Agent)
	log  *slog.Logger
	// t is the whole test: an agent that a subtest starts outlives it.
	t *testing.T

	mu          sync.Mutex
	annotations map[string]string
	stop        context.CancelFunc
	done        chan error
}

func joinOf(i int) v1alpha1.Join {
	j := v1alpha1.Join{Gateways: joinSpec.Gateways}
	for f, c := range joinSpec.CIDRs {
		j.IPs = append(j.IPs, netip.PrefixFrom(offset(c.Addr(), 10+i), joinSpec.CIDRs[f].Bits()))
		j.Clients = append(j.Clients, netip.PrefixFrom(offset(c.Addr(), 100+i), joinSpec.CIDRs[f].Bits()))
	}
	j.MAC = v1alpha1.MAC(ident.MAC(j.IPs[0].Addr()))
	return j
}

func identityOf(uid string, i int) v1alpha1.Identity {
	id := v1alpha1.Identity{PodUID: uid, Subnet: "pods", Gateways: podSpec.Gateways, MTU: 1400}
	for _, c := range podSpec.CIDRs {
		id.IPs = append(id.IPs, netip.PrefixFrom(offset(c.Addr(), 100+i), c.Bits()))
	}
	id.MAC = v1alpha1.MAC(ident.MAC(id.IPs[0].Addr()))
	return id
}

func offset(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] += byte(n)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// useProgramsOfPackages lets knftables find nft.
func useProgramsOfPackages(t *testing.T) {
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

func newTestNode(t *testing.T, c *ovntest.OVNCentral, name string, index int) *testNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwa") // a unix socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &testNode{
		t: t, OVSHost: ovntest.Host(t, c, name), annotations: map[string]string{},
		services: cachetesting.NewFakeControllerSource(), slices: cachetesting.NewFakeControllerSource(), ports: cachetesting.NewFakeControllerSource(),
		nodes: cachetesting.NewFakeControllerSource(), pods: cachetesting.NewFakeControllerSource(), subnets: cachetesting.NewFakeControllerSource(),
		records: newRecords(),
		log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", name),
	}
	n.node = &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(index).Text()}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: n.UnderlayIPs[0].Addr().String()},
		}},
	}
	n.nodes.Add(n.node.DeepCopy())
	n.subnets.Add(subnet("pods", metav1.ConditionTrue, "InNetwork", podSpec.CIDRs[0].String(), podSpec.CIDRs[1].String()))
	source := filepath.Join(dir, "godwit-cni")
	if err := os.WriteFile(source, []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.cfg = Defaults()
	n.cfg.NodeName, n.cfg.OVSEndpoint, n.cfg.SBRemote, n.cfg.HostNetns = name, n.Endpoint, c.SB, n.NetnsPath()
	n.cfg.CNISocket, n.cfg.CNIBinSource, n.cfg.MetricsAddress = filepath.Join(dir, "run", "cni.sock"), source, "127.0.0.1:0"
	n.cfg.CNIBinDir, n.cfg.CNIConfDir = filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
	return n
}

// start runs a new agent on the node, as a restart of its pod does.
func (n *testNode) start() {
	t := n.t
	t.Helper()
	src := Sources{Nodes: n.nodes, Pods: n.pods, Subnets: n.subnets, Services: n.services, EndpointSlices: n.slices, Ports: n.ports, MigrationsFrom: n.records.of(n.Name, sideSource), MigrationsTo: n.records.of(n.Name, sideTarget)}
	a, err := New(n.cfg, src, Writers{Annotate: n.annotate, Report: n.records.report, Certificates: n.certificates}, n.log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if n.tune != nil {
		n.tune(a)
	}
	ctx, stop := context.WithCancel(t.Context())
	n.agent, n.stop, n.done = a, stop, make(chan error, 1)
	done := n.done
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(n.end)
}

func (n *testNode) end() {
	t := n.t
	t.Helper()
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	select {
	case err := <-n.done:
		if err != nil {
			t.Errorf("agent of %s ended with %v", n.Name, err)
		}
	case <-time.After(time.Minute):
		t.Errorf("agent of %s did not end", n.Name)
	}
}

func (n *testNode) annotate(_ context.Context, key, value string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.annotations[key] = value
	n.node.Annotations[key] = value
	n.nodes.Modify(n.node.DeepCopy())
	return nil
}

func (n *testNode) waitReady(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	if err := n.agent.ready.wait(ctx); err != nil {
		t.Fatalf("node %s: %v", n.Name, err)
	}
}

// call carries a CNI operation out as godwit-cni does.
func (n *testNode) call(t *testing.T, req wire.Request) (*wire.Result, error) {
	t.Helper()
	return n.callFor(t, 40*time.Second, req)
}

// callFor does as a godwit-cni does that waits so long.
func (n *testNode) callFor(t *testing.T, timeout time.Duration, req wire.Request) (*wire.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return wire.NewClient(n.cfg.CNISocket).Do(ctx, req)
}

// testPod is a pod with a namespace to be attached.
type testPod struct {
	*netns.Namespace
	pod *corev1.Pod
	id  v1alpha1.Identity
}

func newTestPod(t *testing.T, name string, index int) *testPod {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", index)
	id := identityOf(uid, index)
	return &testPod{Namespace: ns, id: id, pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, UID: types.UID(uid), Annotations: map[string]string{v1alpha1.IdentityAnnotation: id.Text()},
	}}}
}

// lsp is the row that the controller writes for the pod on a node.
func (p *testPod) lsp(node string) *nbdb.LogicalSwitchPort {
	return topology.Pod(p.pod.Namespace, p.pod.Name, ident.DefaultNetwork, ident.ChassisName(node), p.id)
}

func (p *testPod) request(cmd wire.Command) wire.Request {
	return wire.Request{
		Command: cmd, Conf: "godwit", Network: ident.DefaultNetwork, ContainerID: "c-" + p.pod.Name, Netns: p.Path(), IfName: "eth0",
		Pod: wire.Pod{Namespace: p.pod.Namespace, Name: p.pod.Name, UID: string(p.pod.UID)},
	}
}

// eventually calls f until it returns nil: for what other programs do in their own time.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// subnet is one of which the controller says that it is, or is not, ready.
func subnet(name string, ready metav1.ConditionStatus, reason string, cidrs ...string) *v1alpha1.Subnet {
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDRs: cidrs}}
	s.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: ready, Reason: reason}}
	return s
}

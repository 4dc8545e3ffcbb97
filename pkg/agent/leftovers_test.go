package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

func TestOrphan(t *testing.T) {
	pod := func(uid string, annotations map[string]string) *corev1.Pod {
		p := podA(annotations)
		p.UID = "other"
		if uid != "" {
			p.UID = podA(nil).UID
		}
		return p
	}
	ofPod, ofVM := ident.PodPort("ns", "a", "default"), ident.VMPort("ns", "vm", "default")
	for _, c := range []struct {
		what string
		port ovs.PortStatus
		pod  *corev1.Pod
		want bool
	}{
		{"the pod's own", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}}, pod(uid, nil), false},
		{"of an earlier pod of the name", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}}, pod("", nil), true},
		{"of a pod that is gone", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}}, nil, true},
		{"of a pod that is gone, and OVN has bound it here", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}, Installed: true}, nil, false},
		{"of an earlier pod of the name, and OVN has bound it here", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}, Installed: true}, pod("", nil), false},
		{"of a static pod, whose copy in the API is another", ovs.PortStatus{Port: ovs.Port{ID: ofPod, UID: uid}}, pod("", map[string]string{mirrorAnnotation: "x"}), false},
		{"of a launcher", ovs.PortStatus{Port: ovs.Port{ID: ofVM, UID: "vmi"}}, pod("", nil), false},
		{"of a launcher that is gone", ovs.PortStatus{Port: ovs.Port{ID: ofVM, UID: "vmi"}}, nil, true},
		{"of a launcher that is gone, and the VM's row is still here", ovs.PortStatus{Port: ovs.Port{ID: ofVM, UID: "vmi"}, Installed: true}, nil, false},
	} {
		if got := orphan(c.port, c.pod); got != c.want {
			t.Errorf("a port %s: left behind is %v, want %v", c.what, got, c.want)
		}
	}
}

// leftoverBench is a bench with a clock, and on its node: what pod a has, what a pod had that is gone, and a veth of either without a port.
func leftoverBench(t *testing.T) (b *bench, l *leftovers, clock *time.Time) {
	b = newBench(t)
	b.pods.Add(podA(identified()))
	for i, owner := range []struct{ pod, uid string }{{"ns/a", uid}, {"ns/gone", "gone"}} {
		name := netdev.HostName(owner.uid, "eth0")
		b.node.links[name] = netdev.Veth{Host: name, MTU: 1400 + i, Alias: aliasOf(owner.uid, ovs.Owner{})}
		b.node.ports[name] = ovs.PortStatus{Port: ovs.Port{
			Name: name, ID: ident.PodPort("ns", strings.TrimPrefix(owner.pod, "ns/"), "default"), UID: owner.uid,
			Owner: ovs.Owner{Container: "c-" + owner.uid, IfName: "eth0", Netns: "/proc/self/ns/net", Pod: owner.pod},
		}}
		name = netdev.HostName(owner.uid, "net1")
		b.node.links[name] = netdev.Veth{Host: name, MTU: 1500 + i, Alias: aliasOf(owner.uid, ovs.Owner{})}
	}
	b.node.links["gw0000000000a"] = netdev.Veth{Host: "gw0000000000a", MTU: 1300} // says nothing of whose it is
	eventually(t, "pod a", func() error {
		if b.inputs.pod("ns/a") == nil {
			return errors.New("the informer has not shown it")
		}
		return nil
	})
	l, clock = newLeftovers(b.attacher), new(time.Time)
	*clock = time.Unix(1000, 0)
	l.now = func() time.Time { return *clock }
	return b, l, clock
}

func (l *leftovers) passAt(t *testing.T, clock *time.Time, d time.Duration) {
	t.Helper()
	*clock = clock.Add(d)
	if err := l.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLeftoversGoAfterTheGrace(t *testing.T) {
	b, l, clock := leftoverBench(t)
	before := b.node.left()
	l.passAt(t, clock, 0)
	l.passAt(t, clock, leftoverGrace-time.Second)
	if diff := cmp.Diff(before, b.node.left()); diff != "" {
		t.Errorf("within the grace (-before +after):\n%s", diff)
	}
	l.passAt(t, clock, time.Second)
	eth0, net1 := netdev.HostName(uid, "eth0"), netdev.HostName(uid, "net1")
	want := []string{"link " + eth0, "link " + net1, "link gw0000000000a", "port " + eth0}
	slices.Sort(want)
	if diff := cmp.Diff(want, b.node.left()); diff != "" {
		t.Errorf("after the grace (-want +got):\n%s", diff)
	}
	l.passAt(t, clock, 0)
	if delete(l.since, suspect{link: net1, index: b.node.index(b.node.links[net1]), wanted: true}); len(l.since) != 0 { // its pod is here
		t.Errorf("what is gone is remembered: %v", l.since)
	}
}

// A static pod that runs on when its copy in the API is another keeps its port, and that it has no network is said once.
func TestLeftoversTellOfAStaticPodsFormerCopy(t *testing.T) {
	b, l, clock := leftoverBench(t)
	var log strings.Builder
	l.log = slog.New(slog.NewTextHandler(&log, nil))
	again := podA(map[string]string{mirrorAnnotation: "x"})
	again.UID = "again"
	b.pods.Modify(again)
	eventually(t, "the other copy", func() error {
		if p := b.inputs.pod("ns/a"); p == nil || p.UID != again.UID {
			return errors.New("the informer has not shown it")
		}
		return nil
	})
	for range 3 {
		l.passAt(t, clock, leftoverGrace)
	}
	if n := strings.Count(log.String(), "a static pod has no network"); n != 1 || !strings.Contains(log.String(), "pod=ns/a") {
		t.Errorf("said %d times, want once:\n%s", n, log.String())
	}
	if port := "port " + netdev.HostName(uid, "eth0"); !slices.Contains(b.node.left(), port) {
		t.Errorf("%s is gone: %v are left", port, b.node.left())
	}
}

// What cannot be put right keeps nothing else.
func TestLeftoversGoBesideWhatFails(t *testing.T) {
	b, l, clock := leftoverBench(t)
	b.node.fail = map[string]error{"LinkMAC": errors.New("no answer of the kernel")}
	gone := netdev.HostName("gone", "eth0")
	var err error
	for _, d := range []time.Duration{0, leftoverGrace} {
		*clock = clock.Add(d)
		err = l.pass(t.Context())
	}
	if _, there := b.node.ports[gone]; err == nil || there {
		t.Errorf("error %v, and the port of a pod that is gone is there: %v; want the kernel's, and no port", err, there)
	}
}

// What is seen to belong to somebody in between has its whole grace again, and so has what another ADD has made under the name.
func TestLeftoversGraceBeginsAnew(t *testing.T) {
	b, l, clock := leftoverBench(t)
	l.passAt(t, clock, 0)
	port, veth := netdev.HostName("gone", "eth0"), netdev.HostName("gone", "net1")
	p := b.node.ports[port]
	p.Installed = true
	b.node.ports[port] = p
	link := b.node.links[veth]
	link.MTU = 1600 // another link
	b.node.links[veth] = link
	l.passAt(t, clock, leftoverGrace)
	p.Installed = false
	b.node.ports[port] = p
	l.passAt(t, clock, leftoverGrace-time.Second)
	left := b.node.left()
	for _, want := range []string{"port " + port, "link " + port, "link " + veth} {
		if !slices.Contains(left, want) {
			t.Errorf("%s is gone before its grace was over: %v are left", want, left)
		}
	}
}

// Without the API server's list nothing may be judged: runNode starts the loop after it. What is gone from the kernel needs no grace.
func TestLeftoversOfAContainerThatIsGone(t *testing.T) {
	b, l, clock := leftoverBench(t)
	name := netdev.HostName(uid, "eth0")
	p := b.node.ports[name]
	p.Owner.Netns = "/run/netns/gone"
	b.node.ports[name] = p
	delete(b.node.links, name)
	l.passAt(t, clock, 0)
	if slices.Contains(b.node.left(), "port "+name) {
		t.Error("the port of a container that is gone is still there")
	}
}

// deletePod removes a pod's row, as the controller does when its pod is gone.
func (nb *northbound) deletePod(subnet string, p *testPod) {
	nb.t.Helper()
	name := string(ident.PodPort(p.pod.Namespace, p.pod.Name, ident.DefaultNetwork))
	result, err := nb.db.Transact(nb.t.Context(), ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: nbdb.LogicalSwitchPortTable, Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, name)}, Columns: []string{"_uuid"},
	})
	if err != nil || len(result) != 1 || len(result[0].Rows) != 1 {
		nb.t.Fatalf("find row %s: %v %v", name, result, err)
	}
	id, _ := result[0].Rows[0]["_uuid"].(ovsdb.UUID)
	result, err = nb.db.Transact(nb.t.Context(), ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: nbdb.LogicalSwitchTable, Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, string(ident.SubnetSwitch(subnet)))},
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, ovsdb.OvsSet{GoSet: []any{id}})},
	})
	if err != nil || result[0].Error != "" {
		nb.t.Fatalf("delete row %s: %v %v", name, result, err)
	}
}

// journal is a log whose lines a test can ask for.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(p))
	return len(p), nil
}

func (j *journal) has(words ...string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.lines, func(line string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
	})
}

// TestLifecycleLeftovers: on real Open vSwitch and OVN, what pods leave whose DEL never comes goes, also when the agent starts again in between; what runs is not touched.
func TestLifecycleLeftovers(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	n := newTestNode(t, c, "one", 1)
	runs, crashed, deleted := newTestPod(t, "runs", 1), newTestPod(t, "crashed", 2), newTestPod(t, "deleted", 3)
	ends, err := netns.New() // before the test does
	if err != nil {
		t.Fatal(err)
	}
	crashed.Namespace = ends
	rows := topology.Node(n.Name, joinOf(1))
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(ports{nodes: []*nbdb.LogicalSwitchPort{rows.Port}, egress: rows.Egress, pods: []*nbdb.LogicalSwitchPort{runs.lsp(n.Name), crashed.lsp(n.Name), deleted.lsp(n.Name)}})
	const grace = 2 * time.Second
	n.tune = func(a *Agent) { a.leftovers.interval, a.leftovers.grace = 100*time.Millisecond, grace }
	log := &journal{}
	n.log = slog.New(slog.NewTextHandler(log, nil))
	n.start()
	n.waitReady(t)
	for _, p := range []*testPod{runs, crashed, deleted} {
		attach(t, n, p)
	}
	host := netdev.Host{Netns: n.NetnsPath()}
	if _, err := host.CreateVeth(netdev.Veth{Host: netdev.HostName("cut-off", "eth0"), Netns: deleted.Path(), Name: "net1", MTU: 1400, MAC: []byte{2, 0, 0, 0, 0, 9}, Alias: aliasOf("no-pod", ovs.Owner{})}); err != nil {
		t.Fatal(err)
	}
	crashed.Close() // with its namespace the link goes
	left := func(want ...*testPod) error {
		var names []string
		for _, p := range want {
			names = append(names, netdev.HostName(p.request(wire.Add).ContainerID, "eth0"))
		}
		slices.Sort(names)
		if got := portNames(t, n); !slices.Equal(got, names) {
			return fmt.Errorf("ports are %v, want %v", got, names)
		}
		return nil
	}
	eventually(t, "the port of a container that is gone", func() error { return left(runs, deleted) })

	n.pods.Delete(deleted.pod.DeepCopy())
	bound := time.Now()
	for time.Since(bound) < grace+grace/2 { // longer than the grace, while OVN has the port bound here
		if err := left(runs, deleted); err != nil {
			t.Fatalf("a pod is gone, and its row is there: %v", err)
		}
		if err := waitTick(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	nb.deletePod("pods", deleted)
	n.end()
	n.start()
	n.waitReady(t)
	eventually(t, "the port of a pod that is gone", func() error { return left(runs) })
	eventually(t, "links of pods that are gone", func() error {
		sides, err := host.HostSides()
		if err == nil && (len(sides) != 1 || !strings.HasPrefix(sides[0].Alias, aliasOf(string(runs.pod.UID), ovs.Owner{})+" ")) {
			err = fmt.Errorf("links are %+v, want that of pod runs alone", sides)
		}
		return err
	})
	if !log.has("removing leftover attachment", "pod=ns/deleted") || !log.has("removing leftover link", "pod_uid=no-pod") || log.has("removing leftover", "pod=ns/runs") {
		t.Errorf("the log does not name what was removed, and nothing else:\n%s", strings.Join(log.lines, ""))
	}
	if _, err := n.call(t, runs.request(wire.Check)); err != nil {
		t.Errorf("CHECK of the pod that runs: %v", err)
	}
	if _, err := os.Stat(deleted.Path()); err != nil {
		t.Error(err)
	}
}

// waitTick is the pause between two looks.
func waitTick(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}

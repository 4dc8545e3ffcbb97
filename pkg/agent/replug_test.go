package agent

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

func TestAlias(t *testing.T) {
	owner := ovs.Owner{Container: "c", IfName: "eth0", Netns: "/run/netns/c", Conf: "godwit"}
	for name, c := range map[string]struct{ owner, want ovs.Owner }{
		"all of it":                   {owner, owner},
		"a path with a space":         {ovs.Owner{Container: "c", IfName: "eth0", Netns: "/run/net ns/c", Conf: "godwit"}, ovs.Owner{}},
		"more than the kernel stores": {ovs.Owner{Container: strings.Repeat("c", maxAlias), IfName: "eth0", Netns: "/run/netns/c", Conf: "godwit"}, ovs.Owner{}},
		"nothing but the UID":         {},
	} {
		alias := aliasOf(uid, c.owner)
		gotUID, got, ok := parseAlias(alias)
		if diff := cmp.Diff(c.want, got); diff != "" || !ok || gotUID != uid || len(alias) > maxAlias {
			t.Errorf("%s: alias %q is of %q, %v (-want +got):\n%s", name, alias, gotUID, ok, diff)
		}
	}
	if _, _, ok := parseAlias("uplink"); ok {
		t.Error("another's alias says whose it is")
	}
}

// replugBench has pod a attached, with an MTU as ready nodes have.
func replugBench(t *testing.T) (b *bench, l *leftovers, name string) {
	b = newBench(t)
	b.pods.Add(podA(identified()))
	if _, err := b.add(t.Context(), addRequest()); err != nil {
		t.Fatal(err)
	}
	return b, newLeftovers(b.attacher), netdev.HostName(addRequest().ContainerID, "eth0")
}

func (l *leftovers) passes(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := l.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Somebody has removed the bridge under a pod that runs: its port is made again as it was, but not before the second look.
func TestReplug(t *testing.T) {
	b, l, name := replugBench(t)
	before := maps.Clone(b.node.ports)
	clear(b.node.ports)
	if l.passes(t, 1); len(b.node.ports) > 0 {
		t.Errorf("after one look there is %v", b.node.ports)
	}
	l.passes(t, 1)
	if diff := cmp.Diff(before, b.node.ports); diff != "" {
		t.Errorf("after two (-want +got):\n%s", diff)
	}
	if l.passes(t, 1); len(l.since) != 0 {
		t.Errorf("what is mended is remembered: %v", l.since)
	}
	if _, err := b.add(t.Context(), addRequest()); err != nil || b.node.links[name].Host != name {
		t.Errorf("another ADD: %v, links %v", err, b.node.links)
	}
}

func TestReplugPassesOver(t *testing.T) {
	t.Run("a sandbox whose pod has another one", func(t *testing.T) {
		b, l, name := replugBench(t)
		p := b.node.ports[name]
		delete(b.node.ports, name)
		p.Name, p.Owner.Container = netdev.HostName("later", "eth0"), "later"
		b.node.ports[p.Name] = p
		b.node.links[p.Name] = netdev.Veth{Host: p.Name}
		if l.passes(t, 3); len(b.node.ports) != 1 {
			t.Errorf("ports %v, want that of the later sandbox alone", b.node.ports)
		}
	})
	t.Run("a node that has not been ready", func(t *testing.T) {
		b, l, _ := replugBench(t)
		b.attacher.node.mtu.Store(0)
		clear(b.node.ports)
		if l.passes(t, 3); len(b.node.ports) > 0 {
			t.Errorf("ports %v", b.node.ports)
		}
	})
}

// A launcher has its port back when its VM is known to be there: not as long as a migration may still end otherwise, nor after one that has failed, nor while it is being deleted.
func TestReplugLeavesLaunchers(t *testing.T) {
	for name, c := range map[string]struct {
		result    v1alpha1.MigrationResult
		deleted   bool
		replugged bool
	}{
		"the VM has come":           {v1alpha1.MigrationSucceeded, false, true},
		"it may come":               {"", false, false},
		"it has not come":           {v1alpha1.MigrationFailed, false, false},
		"it came, and is to go now": {v1alpha1.MigrationSucceeded, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t)
			w.pm.Status.Result = c.result
			w.records.add(w.pm)
			link := w.target(t)
			if c.deleted {
				pod, now := targetPod(), metav1.Now()
				pod.DeletionTimestamp = &now
				w.pods.Modify(pod)
			}
			eventually(t, "what the agent knows", func() error {
				pod := w.inputs.pod("ns/a")
				if len(w.observer.migrations.all(sideTarget)) == 0 || pod == nil || c.deleted != (pod.DeletionTimestamp != nil) {
					return errors.New("not the migration, or the pod as it was")
				}
				return nil
			})
			w.node.mu.Lock()
			clear(w.node.ports)
			w.node.mu.Unlock()
			newLeftovers(w.attacher).passes(t, 2)
			w.node.mu.Lock()
			defer w.node.mu.Unlock()
			if _, back := w.node.ports[link]; back != c.replugged {
				t.Errorf("the port is back: %v, want %v", back, c.replugged)
			}
		})
	}
}

// A link of an earlier version says for which pod it is, and not which port it had: whoever reads the log is told.
func TestReplugNeedsTheAlias(t *testing.T) {
	b, l, name := replugBench(t)
	clear(b.node.ports)
	link := b.node.links[name]
	link.Alias = aliasOf(uid, ovs.Owner{})
	b.node.links[name] = link
	l.passes(t, 1)
	if err := l.pass(t.Context()); err == nil || !strings.Contains(err.Error(), "ns/a has no network") || !strings.Contains(err.Error(), "delete the pod") {
		t.Errorf("error %v, want the pod and what to do", err)
	}
}

// TestBridgeMadeAnew: on real Open vSwitch and OVN, the bridge is removed under a pod that runs.
func TestBridgeMadeAnew(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	n := newTestNode(t, c, "one", 1)
	pod := newTestPod(t, "runs", 1)
	rows := topology.Node(n.Name, joinOf(1))
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(ports{nodes: []*nbdb.LogicalSwitchPort{rows.Port}, egress: rows.Egress, pods: []*nbdb.LogicalSwitchPort{pod.lsp(n.Name)}})
	n.tune = func(a *Agent) { a.leftovers.interval = 100 * time.Millisecond }
	n.start()
	n.waitReady(t)
	attach(t, n, pod)
	removeBridge(t, n)
	eventually(t, "the port of the pod", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := wire.NewClient(n.cfg.CNISocket).Do(ctx, pod.request(wire.Check))
		return err
	})
}

// removeBridge does as ovs-vsctl del-br, and returns when the pods' ports are gone.
func removeBridge(t *testing.T, n *testNode) {
	t.Helper()
	m, err := vswitchdb.FullDatabaseModel()
	if err != nil {
		t.Fatal(err)
	}
	db, err := client.NewOVSDBClient(m, client.WithEndpoint(n.Endpoint))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := db.Transact(t.Context(), ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: vswitchdb.BridgeTable, Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, ident.IntegrationBridge)}, Columns: []string{"_uuid"},
	})
	if err != nil || len(found) != 1 || len(found[0].Rows) != 1 {
		t.Fatalf("find the bridge: %v %v", found, err)
	}
	id, _ := found[0].Rows[0]["_uuid"].(ovsdb.UUID)
	result, err := db.Transact(t.Context(), ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: vswitchdb.OpenvSwitchTable, Where: []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionNotEqual, id)},
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("bridges", ovsdb.MutateOperationDelete, ovsdb.OvsSet{GoSet: []any{id}})},
	})
	if err != nil || result[0].Error != "" {
		t.Fatalf("remove the bridge: %v %v", result, err)
	}
	left, err := db.Transact(t.Context(), ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: vswitchdb.BridgeTable, Where: []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, id)}, Columns: []string{"name"},
	})
	if err != nil || len(left[0].Rows) > 0 {
		t.Fatal(errors.Join(err, errors.New("the bridge is still there")))
	}
}

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// members are the addresses of an address set.
func (e *env) members(t *testing.T, set string) []string {
	t.Helper()
	var out []string
	for _, r := range e.central.Dump(t, nbdb.AddressSetTable)[nbdb.AddressSetTable] {
		if r["name"] != set {
			continue
		}
		for _, a := range elementsOf(r["addresses"]) {
			out = append(out, a.(string))
		}
	}
	return out
}

// leavesThrough waits until a VM's row, its Port and the nodes' sets agree through which node it leaves; none if that is empty.
func (e *env) leavesThrough(t *testing.T, vm types.NamespacedName, port, want string) {
	t.Helper()
	eventually(t, func() error {
		row, err := e.row(t, vm)
		if err != nil {
			return err
		}
		var p v1alpha1.Port
		if err := e.api.Get(t.Context(), types.NamespacedName{Namespace: vm.Namespace, Name: port}, &p); err != nil {
			return err
		}
		if got := row.ExternalIDs[ident.KeyEgressNode]; got != want || p.Status.EgressNode != want {
			return fmt.Errorf("VM %s: the row says %q, the Port %q, want %q", vm, got, p.Status.EgressNode, want)
		}
		var list corev1.NodeList
		if err := e.api.List(t.Context(), &list); err != nil {
			return err
		}
		for _, n := range list.Items {
			for _, ip := range p.Status.IPs {
				family := "ip4"
				if strings.Contains(ip, ":") {
					family = "ip6"
				}
				if in := slices.Contains(e.members(t, ident.AnchorSet(n.Name, family)), ip); in != (n.Name == want) {
					return fmt.Errorf("the set of node %s has %s: %v; VM %s leaves through %q", n.Name, ip, in, vm, want)
				}
			}
		}
		return nil
	})
}

// A VM leaves through the node on which it started, while it moves and after; through another when it starts again, or when that node is gone.
func TestEgressAnchorRows(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	reserved := &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "move", Name: "anchored"}} // it outlives the instance, as a VM's does
	reserved.Spec.Target = v1alpha1.PortTarget{Kind: v1alpha1.KindVirtualMachine, Name: "anchored"}
	if err := e.api.Create(t.Context(), reserved); err != nil {
		t.Fatal(err)
	}
	v := e.voyage(t, "anchored", "db")
	e.leavesThrough(t, v.vm, "anchored", "n1")
	e.mayAttach(t, v.source, v1alpha1.Attach{Chassis: "n1"})
	before := e.journal.quiet(t)
	v.begin(t, e)
	e.leavesThrough(t, v.vm, "anchored", "n1")
	v.arrive(t, e)
	e.leavesThrough(t, v.vm, "anchored", "n1")
	if written := e.journal.since(before); len(written) != 2 {
		t.Errorf("northbound transactions of a migration, want 2: both chassis, one:\n%s", strings.Join(written, "\n"))
	}
	t.Run("another leader", func(t *testing.T) {
		e.stop()
		e.central.Transact(t, map[string]any{
			"op": ovsdb.OperationUpdate, "table": nbdb.AddressSetTable, "where": []any{[]any{"name", "==", ident.AnchorSet("n1", "ip4")}}, "row": map[string]any{"addresses": []any{"set", []any{}}},
		})
	})
	e.start(t)
	e.leavesThrough(t, v.vm, "anchored", "n1")
	t.Run("the database is lost", func(t *testing.T) {
		e.central.EmptyNB(t)
		e.leavesThrough(t, v.vm, "anchored", "n1")
	})
	t.Run("the anchor goes", func(t *testing.T) {
		if err := e.api.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
			t.Fatal(err)
		}
		e.leavesThrough(t, v.vm, "anchored", "n2")
		if left := e.members(t, ident.AnchorSet("n1", "ip4")); len(left) > 0 {
			t.Errorf("the set of a node that is gone has %v", left)
		}
	})
	t.Run("stopped and started", func(t *testing.T) {
		e.node(t, "n1")
		for _, o := range []client.Object{v.vmi, v.target} {
			if err := e.api.Delete(t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}
		e.asks(t, v.vm, "godwit-none", "")
		e.leavesThrough(t, v.vm, "anchored", "")
		vmi := e.vmi(t, v.vm)
		e.launcher(t, vmi, "anchored-3", "n1", nil)
		e.leavesThrough(t, v.vm, "anchored", "n1")
	})
}

// What is in the cluster and no pod: nodes with the addresses that they have now, and the API server.
func TestEgressHosts(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.defaultSubnet(t)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes-2", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.77"}}},
	}
	if err := e.api.Create(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	has := func(family string, want ...string) {
		t.Helper()
		eventually(t, func() error {
			got := e.members(t, ident.HostSet(family))
			for _, ip := range want {
				if !slices.Contains(got, ip) {
					return fmt.Errorf("the set has %v, want %v", got, want)
				}
			}
			return nil
		})
	}
	has("ip4", "192.0.2.77")
	var n corev1.Node
	for _, ips := range [][2]string{{"192.0.2.11", "2001:db8::11"}, {"192.0.2.12", "2001:db8::12"}} {
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: "n1"}, &n); err != nil {
			t.Fatal(err)
		}
		before := n.DeepCopy()
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ips[0]}, {Type: corev1.NodeInternalIP, Address: ips[1]}, {Type: corev1.NodeHostName, Address: "n1"}}
		if err := e.api.Status().Patch(t.Context(), &n, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		has("ip4", ips[0])
		has("ip6", ips[1])
	}
	if got := e.members(t, ident.HostSet("ip4")); slices.Contains(got, "192.0.2.11") {
		t.Errorf("the node's address of before is still there: %v", got)
	}
}

// The anchor is not ready for long: the VM, which has moved on, leaves from where it is.
func TestEgressAnchorSilent(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	v := e.voyage(t, "left", "db")
	v.begin(t, e)
	v.arrive(t, e)
	e.leavesThrough(t, v.vm, "left", "n1")
	var n corev1.Node
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: "n1"}, &n); err != nil {
		t.Fatal(err)
	}
	before := n.DeepCopy()
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	if err := e.api.Status().Patch(t.Context(), &n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	e.leavesThrough(t, v.vm, "left", "n1")
	e.leavesThrough(t, v.vm, "left", "n2")
}

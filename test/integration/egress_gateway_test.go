package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/agent"
	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// agents play those of nodes, each with the permissions of an agent: they renew Leases.
type agents struct {
	e    *env
	mu   sync.Mutex
	live map[string]context.CancelFunc
	// last is when a node was heard of last, has the addresses that it says it has.
	last map[string]time.Time
	has  map[string][]netip.Addr
}

// steady is the patience with an agent that is to be heard, however slow the machine is.
const steady = v1alpha1.EgressRestart

// lives lets a node's agent renew its Lease, and ask for so much patience, until it dies.
func (a *agents) lives(t *testing.T, node string, patience time.Duration) {
	t.Helper()
	_, writers, err := agent.API(a.e.as(node), node)
	if err != nil {
		t.Fatal(err)
	}
	var n corev1.Node
	if err := a.e.api.Get(t.Context(), types.NamespacedName{Name: node}, &n); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.mu.Lock()
	a.live[node] = cancel
	a.mu.Unlock()
	go func() {
		tick := time.NewTicker(v1alpha1.EgressBeat)
		defer tick.Stop()
		for ctx.Err() == nil {
			a.mu.Lock()
			has := slices.Clone(a.has[node])
			a.mu.Unlock()
			asked := time.Now() // the controller cannot hear of it earlier
			err := writers.Renew(ctx, agent.Beat{Namespace: "godwit-system", UID: n.UID, Patience: patience, Addresses: has})
			a.mu.Lock()
			if err == nil {
				a.last[node] = asked
			} else if ctx.Err() == nil {
				_, _ = fmt.Fprintln(t.Output(), "Lease of", node, err)
			}
			a.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
}

// have lets a node say that it has these egress addresses.
func (a *agents) have(node string, addresses ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.has[node] = nil
	for _, ip := range addresses {
		a.has[node] = append(a.has[node], netip.MustParseAddr(ip))
	}
}

func (a *agents) dies(node string) (heard time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live[node]()
	return a.last[node]
}

// exit is where the router sends what the pods of a Subnet send outside, over IPv4: a node's join address, "drop", or nothing if no policy says anything.
func (e *env) exit(ctx context.Context, subnet string) (string, error) {
	rows, err := e.nb.PolicyRule(ctx, ident.OwnerSubnet, subnet, topology.RuleEgress)
	for _, p := range rows {
		if p.ExternalIDs[ident.KeyFamily] != "ip4" {
			continue
		}
		if p.Action == nbdb.LogicalRouterPolicyActionDrop {
			return p.Action, err
		}
		return strings.Join(p.Nexthops, " "), err
	}
	return "", err
}

// exits waits until a Subnet's pods leave through a node; "drop" if they cannot, empty if each leaves through its own.
func (e *env) exits(t *testing.T, subnet, node string) {
	t.Helper()
	want := node
	if node != "" && node != nbdb.LogicalRouterPolicyActionDrop {
		want = e.joinOf(t, node)
	}
	eventually(t, func() error {
		got, err := e.exit(t.Context(), subnet)
		if err == nil && got != want {
			err = fmt.Errorf("pods of Subnet %s leave by %q, want %q", subnet, got, want)
		}
		return err
	})
}

func (e *env) joinOf(t *testing.T, node string) (ip string) {
	t.Helper()
	eventually(t, func() error {
		var n corev1.Node
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: node}, &n); err != nil {
			return err
		}
		join, err := v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation])
		if err == nil {
			ip = join.IPs[0].Addr().String()
		}
		return err
	})
	return ip
}

// says waits until a Subnet's status says which node is its gateway, and why or why not.
func (e *env) says(t *testing.T, subnet, node, reason string) {
	t.Helper()
	eventually(t, func() error {
		var s v1alpha1.Subnet
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: subnet}, &s); err != nil {
			return err
		}
		got := ""
		if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionEgress); c != nil {
			got = c.Reason
		}
		if s.Status.EgressNode != node || got != reason {
			return fmt.Errorf("Subnet %s says %q, %q; want %q, %q", subnet, s.Status.EgressNode, got, node, reason)
		}
		return nil
	})
}

func (e *env) egress(t *testing.T, subnet string, egress *v1alpha1.Egress) {
	t.Helper()
	var s v1alpha1.Subnet
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: subnet}, &s); err != nil {
		t.Fatal(err)
	}
	before := s.DeepCopy()
	s.Spec.Egress = egress
	if err := e.api.Patch(t.Context(), &s, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

func (e *env) changeNode(t *testing.T, node string, change func(*corev1.Node)) {
	t.Helper()
	var n corev1.Node
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: node}, &n); err != nil {
		t.Fatal(err)
	}
	before := n.DeepCopy()
	change(&n)
	if err := e.api.Patch(t.Context(), &n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// A Subnet's way out: none, its own nodes', a gateway; and what becomes of the gateway when it fails, comes back, is drained and is not selected any more.
// It measures how soon a gateway is replaced, and so runs beside no other test.
func TestEgressGatewayRows(t *testing.T) {
	e := newEnv(t)
	e.start(t)
	for _, n := range []string{"n1", "n2", "n3"} {
		e.node(t, n)
	}
	e.defaultSubnet(t)
	a := &agents{e: e, live: map[string]context.CancelFunc{}, last: map[string]time.Time{}, has: map[string][]netip.Addr{}}
	e.subnetWith(t, "out", []string{"10.20.0.0/16", "fd00:20::/64"})
	e.exits(t, "out", "")
	e.egress(t, "out", &v1alpha1.Egress{Mode: v1alpha1.EgressNone})
	e.exits(t, "out", "drop")
	e.egress(t, "out", &v1alpha1.Egress{Mode: v1alpha1.EgressNode})
	e.exits(t, "out", "")
	gateway := &v1alpha1.Egress{Mode: v1alpha1.EgressGateway, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"egress": "yes"}}}
	e.egress(t, "out", gateway)
	e.exits(t, "out", "drop")
	e.says(t, "out", "", "NoGateway")
	for _, n := range []string{"n1", "n2"} {
		e.changeNode(t, n, func(n *corev1.Node) { n.Labels = map[string]string{"egress": "yes"} })
	}
	a.lives(t, "n1", v1alpha1.EgressPatience)
	e.exits(t, "out", "n1")
	e.says(t, "out", "n1", "GatewayActive")
	a.lives(t, "n2", steady)
	a.lives(t, "n3", steady) // which is not selected
	time.Sleep(2 * v1alpha1.EgressBeat)
	e.exits(t, "out", "n1")

	heard := a.dies("n1")
	e.exits(t, "out", "n2")
	took := time.Since(heard)
	t.Logf("%s after its last renewal another node is the gateway", took.Round(10*time.Millisecond))
	if took < v1alpha1.EgressPatience || took > failOver() {
		t.Errorf("it took %s, want between %s and %s", took, v1alpha1.EgressPatience, failOver())
	}
	e.says(t, "out", "n2", "GatewayActive")
	a.lives(t, "n1", steady)
	time.Sleep(2 * v1alpha1.EgressBeat)
	e.exits(t, "out", "n2") // and stays there
	e.changeNode(t, "n2", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	e.exits(t, "out", "n1")
	e.changeNode(t, "n2", func(n *corev1.Node) { n.Spec.Unschedulable = false })

	e.stop()
	e.start(t) // another leader
	time.Sleep(v1alpha1.EgressPatience)
	e.exits(t, "out", "n1")
	a.dies("n2")
	a.dies("n1")
	e.says(t, "out", "n1", "GatewaySilent")
	e.exits(t, "out", "n1")
	for _, n := range []string{"n1", "n2"} {
		e.changeNode(t, n, func(n *corev1.Node) { n.Labels = map[string]string{"egress": "no"} })
	}
	e.exits(t, "out", "drop") // though n3 lives
	e.says(t, "out", "", "NoGateway")
	if err := e.api.Delete(t.Context(), &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "out"}}); err != nil {
		t.Fatal(err)
	}
	e.exits(t, "out", "")
}

// failOver is within how long after its last sign of life a gateway must be replaced: five seconds on an idle machine, as STRICT in the environment takes it, five times that on a slow one.
func failOver() time.Duration {
	const idle, slowest = 5 * time.Second, 5
	if os.Getenv("STRICT") != "" {
		return idle
	}
	return slowest * idle
}

// With addresses of its own, nothing of a Subnet leaves before the gateway has them.
func TestEgressAddressRows(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.defaultSubnet(t)
	e.changeNode(t, "n1", func(n *corev1.Node) { n.Labels = map[string]string{"egress": "yes"} })
	a := &agents{e: e, live: map[string]context.CancelFunc{}, last: map[string]time.Time{}, has: map[string][]netip.Addr{}}
	a.lives(t, "n1", steady)
	gateway := &v1alpha1.Egress{
		Mode: v1alpha1.EgressGateway, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"egress": "yes"}}, Addresses: []string{"192.0.2.77"},
	}
	e.subnetWith(t, "first", []string{"10.20.0.0/16", "fd00:20::/64"})
	e.egress(t, "first", gateway)
	e.says(t, "first", "n1", "AddressMissing")
	e.exits(t, "first", "drop")
	a.have("n1", "192.0.2.77")
	e.exits(t, "first", "n1")
	e.says(t, "first", "n1", "GatewayActive")
	e.subnetWith(t, "second", []string{"10.21.0.0/16"})
	time.Sleep(time.Second) // the other is older then: times of creation have whole seconds
	e.egress(t, "second", gateway)
	e.says(t, "second", "", "EgressAddressTaken")
	e.exits(t, "second", "drop")
	e.staysClosed(t)
	e.egress(t, "first", nil)
	e.exits(t, "first", "")
	e.exits(t, "second", "n1")
	for _, c := range []struct{ address, reason string }{{"100.64.0.77", "EgressAddressTaken"}, {"169.254.7.7", "EgressAddressInvalid"}} {
		gateway.Addresses = []string{c.address}
		e.egress(t, "second", gateway)
		e.says(t, "second", "", c.reason)
		e.exits(t, "second", "drop")
	}
	for name, bad := range map[string]*v1alpha1.Egress{
		"no selector":              {Mode: v1alpha1.EgressGateway},
		"a selector without a use": {Mode: v1alpha1.EgressNone, NodeSelector: gateway.NodeSelector},
		"an address without a use": {Mode: v1alpha1.EgressNode, Addresses: []string{"192.0.2.77"}},
		"no address":               {Mode: v1alpha1.EgressGateway, NodeSelector: gateway.NodeSelector, Addresses: []string{"192.0.2.0/24"}},
		"two of a family":          {Mode: v1alpha1.EgressGateway, NodeSelector: gateway.NodeSelector, Addresses: []string{"192.0.2.7", "192.0.2.8"}},
		"one of its pods":          {Mode: v1alpha1.EgressGateway, NodeSelector: gateway.NodeSelector, Addresses: []string{"10.21.0.9"}},
		"a family that it has not": {Mode: v1alpha1.EgressGateway, NodeSelector: gateway.NodeSelector, Addresses: []string{"2001:db8::7"}},
		"a mode that there is not": {Mode: "Nowhere"},
	} {
		s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "bad"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.21.0.0/16"}, Egress: bad}}
		if err := e.api.Create(t.Context(), s); !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v, want it invalid", name, err)
		}
	}
}

// Another node is the gateway when the one before has given the Subnet's addresses up, or does not do so for too long. A third that says that they are its own gets nothing.
func TestEgressAddressesHeld(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.defaultSubnet(t)
	a := &agents{e: e, live: map[string]context.CancelFunc{}, last: map[string]time.Time{}, has: map[string][]netip.Addr{}}
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.changeNode(t, n, func(n *corev1.Node) { n.Labels = map[string]string{"egress": "yes"} })
	}
	e.subnetWith(t, "out", []string{"10.20.0.0/16"})
	a.lives(t, "n1", steady)
	e.egress(t, "out", &v1alpha1.Egress{
		Mode: v1alpha1.EgressGateway, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"egress": "yes"}}, Addresses: []string{"192.0.2.77"},
	})
	e.says(t, "out", "n1", "AddressMissing")
	a.have("n1", "192.0.2.77")
	e.exits(t, "out", "n1")
	e.saysItHas(t, "n3", "192.0.2.77")
	var out v1alpha1.Subnet
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: "out"}, &out); err != nil {
		t.Fatal(err)
	}
	e.told(t, &out, "EgressAddressClaimed")
	e.exits(t, "out", "n1")
	e.says(t, "out", "n1", "GatewayActive")
	a.lives(t, "n2", steady)
	time.Sleep(2 * v1alpha1.EgressBeat)
	e.changeNode(t, "n1", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	e.exits(t, "out", "drop")
	e.says(t, "out", "", "AddressMissing")
	time.Sleep(v1alpha1.EgressPatience)
	e.says(t, "out", "", "AddressMissing")
	a.have("n1")
	e.says(t, "out", "n2", "AddressMissing")
	a.have("n2", "192.0.2.77")
	e.exits(t, "out", "n2")
	e.changeNode(t, "n1", func(n *corev1.Node) { n.Spec.Unschedulable = false })
	e.changeNode(t, "n2", func(n *corev1.Node) { n.Labels = nil })
	e.says(t, "out", "", "AddressMissing")
	e.says(t, "out", "n1", "AddressMissing") // after fifteen seconds
	a.have("n2")
	a.have("n1", "192.0.2.77")
	e.exits(t, "out", "n1")
	e.stop()
	e.start(t) // another leader, who did not see that the address was the Subnet's before n3 said that it has it
	time.Sleep(v1alpha1.EgressPatience)
	e.exits(t, "out", "n1")
	e.says(t, "out", "n1", "GatewayActive")
}

// saysItHas makes a node that says that it has an address.
func (e *env) saysItHas(t *testing.T, node, address string) {
	t.Helper()
	e.node(t, node)
	var n corev1.Node
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: node}, &n); err != nil {
		t.Fatal(err)
	}
	before := n.DeepCopy()
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: address})
	if err := e.api.Status().Patch(t.Context(), &n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// What closes a Subnet is made before its status says that it is in the network: nobody takes it for what is left of another.
func (e *env) staysClosed(t *testing.T) {
	t.Helper()
	early := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "early"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.20.7.0/24"}, Egress: &v1alpha1.Egress{Mode: v1alpha1.EgressNone}}}
	e.newSubnet(t, early, v1alpha1.ReasonOverlaps) // and so it stays
	for _, p := range topology.SubnetEgress("early", nil, topology.Gateway{}) {
		if err := e.nb.Apply(t.Context(), ovn.MakePolicy(ident.Router(ident.DefaultNetwork), p)); err != nil {
			t.Fatal(err)
		}
	}
	e.egress(t, "early", nil)
	time.Sleep(time.Second)
	e.exits(t, "early", "drop")
	if err := e.api.Delete(t.Context(), early); err != nil {
		t.Fatal(err)
	}
	e.exits(t, "early", "")
}

// An agent renews the Lease of its own node and no other.
func TestEgressLeases(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.defaultSubnet(t)
	for _, c := range []struct {
		token, node string
		denied      bool
	}{{"n2", "n1", true}, {"", "n1", true}, {"n1", "n1", false}} {
		src, writers, err := agent.API(e.as(c.token), c.node)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := src.Subnet(t.Context(), controller.DefaultSubnet); err != nil || len(s.Spec.CIDRs) == 0 {
			t.Errorf("an agent reads %+v, %v", s, err)
		}
		eventually(t, func() error { // policies take a moment to come into force
			err := writers.Renew(t.Context(), agent.Beat{Namespace: "godwit-system", UID: "u", Patience: v1alpha1.EgressPatience})
			if apierrors.IsForbidden(err) != c.denied || !c.denied && err != nil {
				return fmt.Errorf("an agent with a token of %q renews the Lease of %s: %v, want it denied: %v", c.token, c.node, err, c.denied) //nolint:errorlint // it may be nil
			}
			return nil
		})
	}
}

// subnetWith makes a Subnet that no namespace uses, and waits until it is in the network.
func (e *env) subnetWith(t *testing.T, name string, cidrs []string) {
	t.Helper()
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDRs: cidrs}}
	if err := e.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		err := e.api.Get(t.Context(), types.NamespacedName{Name: name}, s)
		if err == nil && !s.InNetwork() {
			err = fmt.Errorf("Subnet %s is not in the network: %+v", name, s.Status)
		}
		return err
	})
}

package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// policyBed is a northbound database with a writer of policies and what it writes.
type policyBed struct {
	*ovn.NB
	central *ovntest.OVNCentral
	writer  *ovn.PolicyWriter
	again   atomic.Int64

	mu    sync.Mutex
	index *policy.Index
}

func newPolicyBed(t *testing.T) *policyBed {
	t.Helper()
	b := &policyBed{central: ovntest.Central(t), index: policy.New(policy.Config{Join: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")}})}
	b.NB = connectNB(t, b.central)
	b.writer = b.NewPolicyWriter(b, func() { b.again.Add(1) })
	b.apply(t, ovn.EnsureSwitch(&nbdb.LogicalSwitch{Name: "ls", ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerSubnet}}))
	return b
}

func connectNB(t *testing.T, central *ovntest.OVNCentral) *ovn.NB {
	t.Helper()
	nb, err := ovn.Connect(t.Context(), ovn.Config{Endpoints: []string{central.NB}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- nb.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; nb.Close() })
	return nb
}

// Take implements ovn.PolicySource, like the next two.
func (b *policyBed) Take() policy.Changes {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.index.Take()
}

func (b *policyBed) Rows() policy.Rows {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.index.Rows()
}

func (b *policyBed) GroupsOf(p ident.PortName) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.index.GroupsOf(p)
}

func (b *policyBed) tell(change func(*policy.Index)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b.index)
}

func (b *policyBed) apply(t *testing.T, changes ...ovn.Change) {
	t.Helper()
	if err := b.Apply(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

// plug makes the port of a pod and, as a reconciler does, tries again when the row is not as the live copy had it.
func (b *policyBed) plug(ctx context.Context, name ident.PortName, uid string) error {
	row := &nbdb.LogicalSwitchPort{Name: string(name), ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerPod, ident.KeyUID: uid}}
	for {
		err := b.Apply(ctx, ovn.EnsurePort("ls", row), b.writer.Pending())
		if !errors.Is(err, ovn.ErrConflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// same fails the test unless the database has exactly what the index says.
func (b *policyBed) same(t *testing.T) {
	t.Helper()
	want, have := b.Rows(), stored(t, b.central)
	if d := have.differs(want); d != "" {
		t.Fatal(d)
	}
}

const podNamespace = "a"

func randomPod(r *rand.Rand, n int) policy.Pod {
	return policy.Pod{
		Port: ident.PodPort(podNamespace, fmt.Sprintf("p%d", n), "default"), Namespace: podNamespace, Labels: map[string]string{"app": fmt.Sprint(r.IntN(3))},
		IPs:   []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(n + 2)})},
		Ports: []policy.PodPort{{Name: "web", Protocol: "TCP", Number: int32(8080 + r.IntN(2))}},
	}
}

func randomPolicy(r *rand.Rand, n int) *networkingv1.NetworkPolicy {
	selector := func() *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(r.IntN(3))}}
	}
	named := intstr.FromString("web")
	web := networkingv1.NetworkPolicyPort{Port: &named}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: podNamespace, Name: fmt.Sprintf("np%d", n)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *selector(),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: selector()}, {IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.2.%d/32", r.IntN(4))}}},
				Ports: []networkingv1.NetworkPolicyPort{web},
			}},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: selector()}}, Ports: []networkingv1.NetworkPolicyPort{web}}},
		},
	}
}

// TestPolicyWriter lets pods and policies come, change and go in any order, many at once, and compares the database with what should be in it.
func TestPolicyWriter(t *testing.T) {
	t.Parallel()
	b := newPolicyBed(t)
	b.tell(func(x *policy.Index) { x.SetNamespace(podNamespace, nil) })
	b.apply(t, b.writer.Compare())
	b.same(t)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	const rounds, workers, names = 25, 4, 8
	for round := range rounds {
		var g sync.WaitGroup
		for w := range workers {
			r := rand.New(rand.NewPCG(seed, uint64(round*workers+w)))
			g.Go(func() {
				for range 4 {
					if err := b.event(t.Context(), r, w*names+r.IntN(names)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		g.Wait()
		if b.again.Swap(0) > 0 {
			b.apply(t, b.writer.Compare(), b.writer.Pending())
		}
		b.same(t)
	}
}

// event is one thing that happens: to a pod of that number, or to a policy of that number.
func (b *policyBed) event(ctx context.Context, r *rand.Rand, n int) error {
	name := ident.PodPort(podNamespace, fmt.Sprintf("p%d", n), "default")
	switch r.IntN(7) {
	case 0, 1: // as the pod reconciler does it: the index, then the row with its memberships
		b.tell(func(x *policy.Index) { x.SetPod(randomPod(r, n)) })
		return b.plug(ctx, name, fmt.Sprint(r.Uint64()))
	case 2:
		b.tell(func(x *policy.Index) { x.DeletePod(name) })
		return b.Apply(ctx, ovn.DeletePort(name), b.writer.Pending())
	case 3: // the row of another pod of that name
		if err := b.Apply(ctx, ovn.DeletePort(name)); err != nil {
			return err
		}
		b.tell(func(x *policy.Index) { x.SetPod(randomPod(r, n)) })
		return b.plug(ctx, name, fmt.Sprint(r.Uint64()))
	case 4: // a transaction that the database refuses, for something else that is in it
		b.tell(func(x *policy.Index) { x.SetPolicy(randomPolicy(r, n)) })
		if err := b.Apply(ctx, ovn.EnsurePort("nowhere", &nbdb.LogicalSwitchPort{Name: "nobody"}), b.writer.Pending()); err == nil {
			return errors.New("a port on a switch that does not exist was made")
		}
		return nil
	case 6:
		b.tell(func(x *policy.Index) { x.SetPolicy(randomPolicy(r, n)) })
	case 5:
		b.tell(func(x *policy.Index) {
			x.DeletePolicy(policy.Key{Namespace: podNamespace, Name: fmt.Sprintf("np%d", n)})
		})
	}
	return b.Apply(ctx, b.writer.Pending())
}

// TestPolicyWriterMends changes rows by hand: what is missed while writing is mended by itself, the rest is found by Differs.
func TestPolicyWriterMends(t *testing.T) {
	t.Parallel()
	b := newPolicyBed(t)
	r := rand.New(rand.NewPCG(1, 2))
	b.tell(func(x *policy.Index) {
		x.SetNamespace(podNamespace, nil)
		for n := range 6 {
			x.SetPolicy(randomPolicy(r, n))
		}
	})
	for n := range 6 {
		b.addPod(t, r, n)
	}
	b.apply(t, b.writer.Compare())
	b.same(t)
	group := []any{[]any{"name", "==", policy.IngressGroup}}
	for name, op := range map[string]map[string]any{
		"an ACL permits more":        {"op": "update", "table": "ACL", "where": []any{[]any{"action", "==", "drop"}}, "row": map[string]any{"action": "allow"}},
		"members are taken out":      {"op": "update", "table": "Port_Group", "where": []any{}, "row": map[string]any{"ports": []any{"set", []any{}}}},
		"a group has no ACLs":        {"op": "update", "table": "Port_Group", "where": group, "row": map[string]any{"acls": []any{"set", []any{}}}},
		"an address too many":        {"op": "mutate", "table": "Address_Set", "where": []any{}, "mutations": []any{[]any{"addresses", "insert", "203.0.113.1"}}},
		"all address sets are gone":  {"op": "delete", "table": "Address_Set", "where": []any{}},
		"the isolated group is gone": {"op": "delete", "table": "Port_Group", "where": group},
	} {
		t.Run(name, func(t *testing.T) {
			if b.differs(t) {
				t.Error("it differs before anything was changed")
			}
			b.central.Transact(t, op)
			if !b.differs(t) {
				t.Error("nobody has noticed")
			}
			b.apply(t, b.writer.Stale())
			b.apply(t, b.writer.Compare())
			b.same(t)
		})
	}
	b.central.Transact(t, map[string]any{"op": "delete", "table": "Port_Group", "where": []any{}})
	b.again.Store(0)
	b.addPod(t, r, 7)
	if b.again.Load() == 0 {
		t.Fatal("nobody has noticed that the groups are gone")
	}
	b.apply(t, b.writer.Compare())
	b.same(t)
}

func (b *policyBed) addPod(t *testing.T, r *rand.Rand, n int) {
	t.Helper()
	pod := randomPod(r, n)
	b.tell(func(x *policy.Index) { x.SetPod(pod) })
	if err := b.plug(t.Context(), pod.Port, "uid"); err != nil {
		t.Fatal(err)
	}
}

func (b *policyBed) differs(t *testing.T) bool {
	t.Helper()
	differs, err := b.writer.Differs(t.Context(), b.NB)
	if err != nil {
		t.Fatal(err)
	}
	return differs
}

package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// serviceBed is a northbound database with a writer of Services and what it writes.
type serviceBed struct {
	*ovn.NB
	central *ovntest.OVNCentral
	writer  *ovn.ServiceWriter
	again   atomic.Int64

	mu    sync.Mutex
	index *service.Index
}

func newServiceBed(t *testing.T) *serviceBed {
	t.Helper()
	b := &serviceBed{central: ovntest.Central(t), index: service.New()}
	b.NB = connectNB(t, b.central)
	b.writer = b.NewServiceWriter(b, func() { b.again.Add(1) })
	return b
}

// Take implements ovn.ServiceSource, like the next two.
func (b *serviceBed) Take() []service.Key {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.index.Take()
}

func (b *serviceBed) Rows(key service.Key) topology.ServiceRows {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, _ := b.index.Service(key)
	return topology.Service(s)
}

func (b *serviceBed) All() map[service.Key]topology.ServiceRows {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index.Take()
	out := map[service.Key]topology.ServiceRows{}
	for _, s := range b.index.Services() {
		out[s.Key] = topology.Service(s)
	}
	return out
}

// set tells of a Service with a ClusterIP of its own.
func (b *serviceBed) set(number int, scope service.Scope, endpoints ...string) {
	b.setAt(number, number, scope, endpoints...)
}

// setAt is set with the ClusterIP of another.
func (b *serviceBed) setAt(number, at int, scope service.Scope, endpoints ...string) {
	k := key("a", fmt.Sprintf("s%d", number))
	s := aService(k, func(s *corev1.Service) {
		s.Spec.ClusterIP = fmt.Sprintf("10.%d.%d.%d", 96+at>>16, at>>8&255, at&255)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		if policy := corev1.ServiceInternalTrafficPolicyLocal; scope == service.Local {
			s.Spec.InternalTrafficPolicy = &policy
		}
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index.Set(s, []*discoveryv1.EndpointSlice{endpointSlice(k, 1, endpoints...)})
}

func (b *serviceBed) unset(number int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index.Delete(service.Key{Namespace: "a", Name: fmt.Sprintf("s%d", number)})
}

// wanted is what the database shall have, in the words of storedBalancers.
func (b *serviceBed) wanted() []string {
	var out []string
	for _, rows := range b.All() {
		out = append(out, describeRows(rows)...)
	}
	slices.Sort(out)
	return out
}

// TestServiceWriter lets several reconcilers tell and write at the same time, among others whose transactions fail, while somebody changes rows by hand.
func TestServiceWriter(t *testing.T) {
	t.Parallel()
	b := newServiceBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.Apply(ctx, b.writer.Compare()); err != nil {
		t.Fatal(err)
	}
	g, gctx := errgroup.WithContext(ctx)
	for worker := range 6 {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(worker), 7))
			for range 120 {
				number := worker*10 + r.IntN(10)
				switch r.IntN(8) {
				case 0:
					b.unset(number)
				default:
					var endpoints []string
					for i := range r.IntN(4) {
						endpoints = append(endpoints, fmt.Sprintf("10.9.%d.%d n%d ready", worker, i, 1+r.IntN(3)))
					}
					b.set(number, []service.Scope{service.Local, service.Cluster, service.Cluster}[r.IntN(3)], endpoints...)
				}
				var err error
				switch r.IntN(6) {
				case 0: // a change that fails before it is sent takes what is with it along
					if err = b.Apply(gctx, b.writer.Pending(), ovn.EnsureServed("absent", "absent")); err != nil && gctx.Err() == nil {
						err = nil
					}
				case 1:
					err = b.Apply(gctx, b.writer.Stale(), b.writer.Compare(), b.writer.Pending())
				default:
					err = b.Apply(gctx, b.writer.Pending())
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := b.Apply(ctx, b.writer.Compare(), b.writer.Pending()); err != nil { // as services.Start does when it is woken
			return err
		}
		if d := cmp.Diff(b.wanted(), storedBalancers(t, b.central)); d != "" { //nolint:contextcheck // read with the test's own
			return errors.New("rows of Services (-want +got):\n" + d)
		}
		return nil
	})
	if differs, err := b.writer.Differs(ctx, b.NB); err != nil || differs {
		t.Errorf("Differs says %v (%v) of what is as it should be", differs, err)
	}
	b.central.Transact(t, map[string]any{"op": "update", "table": "Address_Set", "where": [][]any{{"name", "==", ident.LocalServices("ip4")}},
		"row": map[string]any{"addresses": []any{"set", []any{"192.0.2.99"}}}})
	if differs, err := b.writer.Differs(ctx, b.NB); err != nil || !differs {
		t.Errorf("Differs says %v (%v) of what somebody changed", differs, err)
	}
}

// Whoever writes EndpointSlices can name any nodes. Of those that say nothing any more some rows stay, of very many none.
func TestServiceOnVeryManyNodes(t *testing.T) {
	t.Parallel()
	b := newServiceBed(t)
	for _, c := range []struct {
		nodes  int
		differ bool
	}{{3, false}, {150, true}} {
		var endpoints []string
		for i := range c.nodes {
			endpoints = append(endpoints, fmt.Sprintf("10.9.0.%d x%d ready", 1+i, i))
		}
		b.set(1, service.Local, endpoints...)
		if err := b.Apply(t.Context(), b.writer.Compare(), b.writer.Pending()); err != nil {
			t.Fatal(err)
		}
		if rows := b.central.Dump(t, nbdb.ChassisTemplateVarTable)[nbdb.ChassisTemplateVarTable]; len(rows) != c.nodes {
			t.Fatalf("%d chassis have variables, want %d", len(rows), c.nodes)
		}
		b.unset(1)
		if err := b.Apply(t.Context(), b.writer.Pending()); err != nil {
			t.Fatal(err)
		}
		if differs, err := b.writer.Differs(t.Context(), b.NB); err != nil || differs != c.differ {
			t.Errorf("Differs says %v (%v) of %d rows that say nothing, want %v", differs, err, c.nodes, c.differ)
		}
	}
	if err := b.Apply(t.Context(), b.writer.Stale(), b.writer.Compare()); err != nil {
		t.Fatal(err)
	}
	if rows := b.central.Dump(t, nbdb.ChassisTemplateVarTable)[nbdb.ChassisTemplateVarTable]; len(rows) != 0 {
		t.Errorf("%d rows are left, want none", len(rows))
	}
}

// A Service that goes takes its ClusterIP out of no set that another needs it in, which has got it, whichever of them is written first.
func TestServiceAddressChangesHands(t *testing.T) {
	t.Parallel()
	b := newServiceBed(t)
	if err := b.Apply(t.Context(), b.writer.Compare()); err != nil {
		t.Fatal(err)
	}
	for _, number := range []int{9, 1, 9} {
		for _, before := range []int{1, 9} {
			b.unset(before)
		}
		b.setAt(number, 5, service.Local, "10.9.0.1 n1 ready")
		if err := b.Apply(t.Context(), b.writer.Pending()); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b.wanted(), storedBalancers(t, b.central)); d != "" {
			t.Errorf("rows when s%d has the address (-want +got):\n%s", number, d)
		}
	}
	b.unset(9)
	if err := b.Apply(t.Context(), b.writer.Pending()); err != nil {
		t.Fatal(err)
	}
	if got := storedBalancers(t, b.central); len(got) > 0 {
		t.Errorf("when nobody has it there is %v", got)
	}
}

// TestServiceScale writes 5,000 Services of 10 endpoints, and then changes one. It tells how long each takes, and so runs beside no other test.
func TestServiceScale(t *testing.T) {
	b := newServiceBed(t)
	const services = 5000
	ends := func(number, count int) []string {
		var out []string
		for i := range count {
			out = append(out, fmt.Sprintf("10.%d.%d.%d n1 ready", 10+number>>8&31, number&255, i+1))
		}
		return out
	}
	for i := range services {
		b.set(i, service.Cluster, ends(i, 10)...)
	}
	start := time.Now()
	if err := b.Apply(t.Context(), b.writer.Compare()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d Services of 10 endpoints were written in %s", services, time.Since(start).Round(time.Millisecond))
	before := versions(t, b.central)
	if len(before) < services {
		t.Fatalf("%d rows, want %d Services", len(before), services)
	}
	b.set(7, service.Cluster, ends(7, 9)...)
	start = time.Now()
	if err := b.Apply(t.Context(), b.writer.Pending()); err != nil {
		t.Fatal(err)
	}
	t.Logf("one endpoint less of one was written in %s", time.Since(start).Round(time.Microsecond))
	if changed := changedRows(before, versions(t, b.central)); len(changed) != 1 {
		t.Errorf("%d rows changed, want 1", len(changed))
	}
	start = time.Now()
	if err := b.Apply(t.Context(), b.writer.Stale(), b.writer.Compare()); err != nil {
		t.Fatal(err)
	}
	t.Logf("all were compared in %s", time.Since(start).Round(time.Millisecond))
}

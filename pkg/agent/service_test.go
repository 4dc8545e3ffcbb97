package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// fakeBalancer is the kernel's balancing in memory.
type fakeBalancer struct {
	mu      sync.Mutex
	fail    error
	passage netdev.Passage
	pending map[netdev.Frontend]*netdev.Balance
	written map[netdev.Frontend]netdev.Balance
	writes  int
	doubted int
}

func newFakeBalancer() *fakeBalancer {
	return &fakeBalancer{pending: map[netdev.Frontend]*netdev.Balance{}, written: map[netdev.Frontend]netdev.Balance{}}
}

func (b *fakeBalancer) SetPassage(p netdev.Passage)              { b.passage = p }
func (b *fakeBalancer) Set(f netdev.Frontend, to netdev.Balance) { b.pending[f] = &to }
func (b *fakeBalancer) Delete(f netdev.Frontend)                 { b.pending[f] = nil }
func (b *fakeBalancer) Doubt()                                   { b.mu.Lock(); b.doubted++; b.mu.Unlock() }

func (b *fakeBalancer) Write(context.Context) (wrote bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes++
	if b.fail != nil {
		return true, b.fail
	}
	wrote = len(b.pending) > 0
	for f, to := range b.pending {
		if delete(b.written, f); to != nil {
			b.written[f] = *to
		}
	}
	clear(b.pending)
	return wrote, nil
}

// backends are those of a frontend; "none" if it is not there.
func (b *fakeBalancer) backends(addr string, port uint16) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	to, ok := b.written[netdev.Frontend{Addr: netip.MustParseAddr(addr), Protocol: netdev.TCP, Port: port}]
	if !ok {
		return "none"
	}
	var out []string
	for _, a := range to.All.Backends {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// serviceBench runs services on a node named one.
type serviceBench struct {
	t *testing.T
	*services
	table                               *fakeBalancer
	registry                            *prometheus.Registry
	nodes, subnets, svcs, slices, ports *cachetesting.FakeControllerSource
}

func newServiceBench(t *testing.T, listen listener) *serviceBench {
	t.Helper()
	source := cachetesting.NewFakeControllerSource
	b := &serviceBench{t: t, table: newFakeBalancer(), registry: prometheus.NewRegistry(), nodes: source(), subnets: source(), svcs: source(), slices: source(), ports: source()}
	src := Sources{Nodes: b.nodes, Pods: source(), Subnets: b.subnets, Services: b.svcs, EndpointSlices: b.slices, Ports: b.ports}
	var poke func()
	in, err := newInputs("one", src, func() { poke() })
	if err != nil {
		t.Fatal(err)
	}
	if b.services, err = newServices("one", src, in, b.table, listen); err != nil {
		t.Fatal(err)
	}
	poke = b.poke
	b.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	if b.metrics, err = newServiceMetrics(b.registry); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { in.run(ctx); done <- nil }()
	go func() { done <- b.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *serviceBench) join() {
	b.nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(1).Text()}}})
}

// want waits until a frontend has these backends.
func (b *serviceBench) want(what, addr string, port uint16, backends string) {
	b.t.Helper()
	eventually(b.t, what, func() error {
		if got := b.table.backends(addr, port); got != backends {
			return fmt.Errorf("%s port %d leads to %q, want %q", addr, port, got, backends)
		}
		return nil
	})
}

func svcOf(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// sliceOf has endpoints "IP@NODE", with a "!" before those that are not ready.
func sliceOf(svc string, endpoints ...string) *discoveryv1.EndpointSlice {
	protocol, port, name := corev1.ProtocolTCP, int32(8080), ""
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: svc + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for _, text := range endpoints {
		addr, node, _ := strings.Cut(strings.TrimPrefix(text, "!"), "@")
		ready := !strings.HasPrefix(text, "!")
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return es
}

// What is in the API is in the table, soon, and what is not any more is not.
func TestServices(t *testing.T) {
	b := newServiceBench(t, nil)
	b.svcs.Add(svcOf("a", "10.96.0.1"))
	b.slices.Add(sliceOf("a", "10.244.0.5@one"))
	eventually(t, "the lists", func() error {
		if !b.objects.services.HasSynced() || !b.objects.slices.HasSynced() || !b.objects.ports.HasSynced() {
			return errors.New("are not here")
		}
		return nil
	})
	time.Sleep(2 * serviceInterval)
	if b.table.mu.Lock(); b.table.writes > 0 {
		t.Error("written before the node has its place in the network")
	}
	b.table.mu.Unlock()
	b.join()
	b.want("a Service", "10.96.0.1", 80, "10.244.0.5:8080")
	want := netdev.Passage{Gateway: "ovn0", Own: addrsOf(joinOf(1).IPs), Clients: addrsOf(joinOf(1).Clients)}
	if d := cmp.Diff(want, b.table.passage, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("passage (-want +got)\n%s", d)
	}
	b.slices.Modify(sliceOf("a", "10.244.0.5@one", "10.244.1.5@two", "!10.244.1.6@two"))
	b.want("another endpoint", "10.96.0.1", 80, "10.244.0.5:8080 10.244.1.5:8080")
	b.slices.Delete(sliceOf("a"))
	b.want("no endpoint", "10.96.0.1", 80, "")
	b.svcs.Add(svcOf("b", "10.96.0.2"))
	b.want("a Service that nobody has endpoints for", "10.96.0.2", 80, "")
	if got := value(t, b.metrics.services); got != 2 {
		t.Errorf("%v Services are counted, want 2", got)
	}
	b.svcs.Delete(svcOf("a", "10.96.0.1"))
	b.want("no Service", "10.96.0.1", 80, "none")
	again := svcOf("c", "10.96.0.2") // b's address, before b's end is known
	b.svcs.Delete(svcOf("b", "10.96.0.2"))
	b.svcs.Add(again)
	b.slices.Add(sliceOf("c", "10.244.0.9@one"))
	b.want("an address that changed hands", "10.96.0.2", 80, "10.244.0.9:8080")
	moved := svcOf("c", "10.96.0.2")
	moved.Spec.Ports[0].Port = 81
	b.svcs.Modify(moved)
	b.want("another port", "10.96.0.2", 81, "10.244.0.9:8080")
	b.want("the port before", "10.96.0.2", 80, "none")
}

// A write that fails is tried again, and the health checks say so meanwhile.
func TestServicesAreTriedAgain(t *testing.T) {
	b := newServiceBench(t, nil)
	b.join()
	b.svcs.Add(svcOf("a", "10.96.0.1"))
	b.want("a Service", "10.96.0.1", 80, "")
	b.table.mu.Lock()
	b.table.fail = errors.New("somebody holds nftables")
	b.table.mu.Unlock()
	b.slices.Add(sliceOf("a", "10.244.0.5@one"))
	eventually(t, "failures", func() error {
		if got := value(t, b.metrics.failures); got < 2 || b.healthy.Load() {
			return fmt.Errorf("%v are counted, healthy %t; want two or more", got, b.healthy.Load())
		}
		return nil
	})
	b.table.mu.Lock()
	b.table.fail = nil
	b.table.mu.Unlock()
	b.want("after the failure", "10.96.0.1", 80, "10.244.0.5:8080")
	if !b.healthy.Load() {
		t.Error("not healthy after a write that succeeded")
	}
	b.doubt()
	eventually(t, "a look", func() error {
		b.table.mu.Lock()
		defer b.table.mu.Unlock()
		if b.table.doubted != 1 {
			return fmt.Errorf("the table was doubted %d times, want once", b.table.doubted)
		}
		return nil
	})
}

// A VM that moves keeps its place in a Service while its launchers are not ready.
func TestServiceOfAMovingVM(t *testing.T) {
	b := newServiceBench(t, nil)
	b.join()
	port := func(phase v1alpha1.PortPhase, node string) *v1alpha1.Port {
		return &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm"}, Status: v1alpha1.PortStatus{Phase: phase, Node: node, IPs: []string{"10.244.0.7"}}}
	}
	b.ports.Add(port(v1alpha1.PortAttached, "one"))
	b.svcs.Add(svcOf("a", "10.96.0.1"))
	b.slices.Add(sliceOf("a", "10.244.0.7@one", "10.244.0.8@one"))
	b.want("at first", "10.96.0.1", 80, "10.244.0.7:8080 10.244.0.8:8080")
	b.ports.Modify(port(v1alpha1.PortMigrating, "one"))
	eventually(t, "the migration", func() error {
		if p := b.objects.ports.GetStore().List(); len(p) != 1 || p[0].(*v1alpha1.Port).Status.Phase != v1alpha1.PortMigrating {
			return errors.New("is not known")
		}
		return nil
	})
	b.slices.Modify(sliceOf("a", "!10.244.0.7@one", "!10.244.0.8@one"))
	b.want("while it moves", "10.96.0.1", 80, "10.244.0.7:8080")
	b.ports.Modify(port(v1alpha1.PortAttached, "two"))
	b.slices.Modify(sliceOf("a", "10.244.0.7@two", "10.244.0.9@one"))
	b.want("after it", "10.96.0.1", 80, "10.244.0.7:8080 10.244.0.9:8080")
	b.slices.Modify(sliceOf("a", "!10.244.0.7@two"))
	b.want("when it is not ready later", "10.96.0.1", 80, "")
}

// Load balancers are told whether the node has endpoints.
func TestServiceHealthCheck(t *testing.T) {
	var mu sync.Mutex
	at := map[string]string{}
	taken := errors.New("address already in use")
	b := newServiceBench(t, func(ctx context.Context, address string) (net.Listener, error) {
		mu.Lock()
		defer mu.Unlock()
		if address == ":32001" {
			return nil, taken
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err == nil {
			at[address] = l.Addr().String()
		}
		return l, err
	})
	b.join()
	local := svcOf("a", "10.96.0.1")
	local.Spec.Type, local.Spec.ExternalTrafficPolicy, local.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 32000
	b.svcs.Add(local)
	other := svcOf("b", "10.96.0.2")
	other.Spec.Type, other.Spec.ExternalTrafficPolicy, other.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 32001
	b.svcs.Add(other)
	ask := func(code int, body string) {
		t.Helper()
		eventually(t, "the health check", func() error {
			mu.Lock()
			addr := at[":32000"]
			mu.Unlock()
			resp, err := http.Get("http://" + addr) //nolint:noctx // a test's
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			var got strings.Builder
			if _, err := fmt.Fprint(&got, readAll(resp)); err != nil {
				return err
			}
			if resp.StatusCode != code || strings.TrimSpace(got.String()) != body || resp.Header.Get("Content-Type") != "application/json" {
				return fmt.Errorf("%d %s %s, want %d %s", resp.StatusCode, resp.Header.Get("Content-Type"), got.String(), code, body)
			}
			return nil
		})
	}
	ask(503, `{"service":{"namespace":"ns","name":"a"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	b.slices.Add(sliceOf("a", "10.244.0.5@one", "10.244.0.6@one", "10.244.1.5@two"))
	ask(200, `{"service":{"namespace":"ns","name":"a"},"localEndpoints":2,"serviceProxyHealthy":true}`)
	b.slices.Modify(sliceOf("a", "10.244.1.5@two"))
	ask(503, `{"service":{"namespace":"ns","name":"a"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	b.svcs.Delete(local)
	eventually(t, "the port", func() error {
		conn, err := net.DialTimeout("tcp", at[":32000"], time.Second)
		if err == nil {
			return errors.Join(errors.New("is open still"), conn.Close())
		}
		return nil
	})
}

func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetGauge().GetValue() + out.GetCounter().GetValue()
}

func readAll(resp *http.Response) string {
	buf := make([]byte, 1000)
	n, _ := resp.Body.Read(buf)
	return string(buf[:n])
}

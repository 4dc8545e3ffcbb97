package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/service/oracle"
)

// In make test these Services are played, with SERVICES=all every one.
var fewServices = []string{"Cluster", "Local", "Cluster, affinity", "Cluster, host-network backends"}

// serviceCase is a Service that has every kind of address.
type serviceCase struct {
	name   string
	role   string
	port   int32
	change func(*corev1.ServiceSpec)
}

const (
	podRole  = "pod"
	hostRole = "host"
)

// serviceCases are all combinations of policies and affinity, for pods and for pods on their nodes' own network.
func serviceCases() []serviceCase {
	var out []serviceCase
	for _, role := range []string{podRole, hostRole} {
		for _, internal := range []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal} {
			for _, external := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
				for _, affinity := range []corev1.ServiceAffinity{corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP} {
					c := serviceCase{name: string(internal), role: role, port: 7, change: func(s *corev1.ServiceSpec) {
						s.InternalTrafficPolicy, s.ExternalTrafficPolicy, s.SessionAffinity = &internal, external, affinity
					}}
					if string(external) != string(internal) {
						c.name += " inside, " + string(external) + " outside"
					}
					if affinity == corev1.ServiceAffinityClientIP {
						c.name += ", affinity"
					}
					if role == hostRole {
						c.name, c.port = c.name+", host-network backends", hostBackendPort
					}
					out = append(out, c)
				}
			}
		}
	}
	return append(out,
		fromRanges("from the outside's range", [2]string{"172.30.0.0/24", "fd00:172:30::/64"}), fromRanges("from another range", [2]string{"198.51.100.0/24", "2001:db8:5::/64"}))
}

// fromRanges is a Service whose load balancer addresses are for clients of a range alone.
func fromRanges(name string, ranges [2]string) serviceCase {
	return serviceCase{name: name, role: podRole, port: 7, change: func(s *corev1.ServiceSpec) {
		for _, r := range ranges {
			if cluster.IPFamily() == lab.DualStack || netip.MustParsePrefix(r).Addr().Is4() == (cluster.IPFamily() == lab.IPv4) {
				s.LoadBalancerSourceRanges = append(s.LoadBalancerSourceRanges, r)
			}
		}
	}}
}

// market is a namespace with backends on two of three nodes, and customers in all places.
type market struct {
	ns        string
	backends  map[string][]oracle.Backend
	customers []customer
}

func newMarket(t *testing.T) *market {
	t.Helper()
	m := &market{ns: namespace(t, nil), backends: map[string][]oracle.Backend{}}
	create(t, serviceBackend(m.ns, "a", "node1", podRole), serviceBackend(m.ns, "b", "node2", podRole), server(m.ns, "near", "node1"), server(m.ns, "far", "node3"),
		onHostBackend(m.ns, "ha", "node1", hostRole), onHostBackend(m.ns, "hb", "node2", hostRole))
	pods := ready(t, m.ns, 6)
	m.backends[podRole] = []oracle.Backend{backend(pods["a"]), backend(pods["b"])}
	for _, name := range []string{"ha", "hb"} {
		b := backend(pods[name])
		b.OnHost = true
		m.backends[hostRole] = append(m.backends[hostRole], b)
	}
	itself := podCustomer(pods["a"])
	itself.Backend = "a"
	m.customers = []customer{
		podCustomer(pods["near"]), podCustomer(pods["far"]), itself, machineCustomer("node1"), machineCustomer("node3"), machineCustomer("outside"),
	}
	return m
}

// addresses gives a Service of the table externalIPs and load balancer addresses, two of each: the network outside takes one of them to a node that has a backend, and
// one to a node that has none.
func addresses(t *testing.T, svc *corev1.Service, number int) (loadBalancer []string, via map[netip.Addr]string) {
	t.Helper()
	via = map[netip.Addr]string{}
	at := func(host int, node string) []string {
		list := ofFamilies([2]string{fmt.Sprintf("192.0.2.%d", number*4+host), fmt.Sprintf("2001:db8::%d:%d", number, host+1)})
		for i, text := range list {
			addr := netip.MustParseAddr(text)
			list[i], via[addr] = addr.String(), node // as the API server wants it written
			routeOutside(t, addr, node)
		}
		return list
	}
	svc.Spec.ExternalIPs = slices.Concat(at(0, "node1"), at(1, "node3"))
	return slices.Concat(at(2, "node1"), at(3, "node3")), via
}

// routeOutside has the network outside take an address to a node, until the test ends.
func routeOutside(t *testing.T, addr netip.Addr, node string) {
	t.Helper()
	route := func(ctx context.Context, verb string) error {
		_, err := cluster.Outside(ctx, "ip", "route", verb, netip.PrefixFrom(addr, addr.BitLen()).String(), "via", sameFamily(cluster.NodeIPs(node), addr).String())
		return err
	}
	// A node that does not know the address yet sends it back to the network's router, and the client a redirect, which would be believed for minutes.
	if _, err := cluster.Outside(t.Context(), "sh", "-c", "for c in all eth0; do for f in ipv4 ipv6; do echo 0 > /proc/sys/net/$f/conf/$c/accept_redirects; done; done"); err != nil {
		t.Fatal(err)
	}
	if err := route(t.Context(), "replace"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := route(context.WithoutCancel(t.Context()), "del"); err != nil {
			t.Error(err)
		}
	})
}

// open makes a Service, and gives it load balancer addresses as an implementation of load balancers does.
func open(t *testing.T, svc *corev1.Service, loadBalancer []string) {
	t.Helper()
	if err := cluster.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(cluster.api.Delete(context.WithoutCancel(t.Context()), svc)); err != nil {
			t.Error(err)
		}
	})
	if len(loadBalancer) == 0 {
		return
	}
	for _, ip := range loadBalancer {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	if err := cluster.api.Status().Update(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
}

// Every kind of address, protocol, family, place of the client and policy: each cell is connections, and what is found is what the API's text says.
func TestServiceTable(t *testing.T) {
	m := newMarket(t)
	all := os.Getenv("SERVICES") == "all"
	played := 0
	for number, c := range serviceCases() {
		if !all && !slices.Contains(fewServices, c.name) {
			continue
		}
		played++
		t.Run(c.name, func(t *testing.T) {
			svc := echoService(m.ns, fmt.Sprintf("s%d", number), c.role, c.port)
			svc.Spec.Type = corev1.ServiceTypeLoadBalancer
			c.change(&svc.Spec)
			loadBalancer, via := addresses(t, svc, number)
			open(t, svc, loadBalancer)
			q := inquiry{svc: svc, backends: m.backends[c.role], counters: counters(svc, via)}
			if want := 2 * families() * (1 + 2 + 2 + len(cluster.NodeNames())); len(q.counters) != want {
				t.Fatalf("the Service has %d addresses and ports, want %d", len(q.counters), want)
			}
			q.settle(t, m.customers)
		})
	}
	if !all && played != len(fewServices) {
		t.Errorf("%d Services were played, want %d: a name has changed", played, len(fewServices))
	}
	consistent(t)
}

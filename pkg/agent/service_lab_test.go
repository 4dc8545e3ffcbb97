package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNodeServices connects to Services on real OVN, with strict reverse path filtering: from nodes, from pods, and from outside, which a host without an agent is.
func TestNodeServices(t *testing.T) {
	a, b := newTestPod(t, "a", 1), newTestPod(t, "b", 2)
	all := cluster(t, []string{"one", "two", "three"}, map[*testPod]string{a: "one", b: "two"})
	one, two, outside := all[0], all[1], all[2]
	services := []*corev1.Service{
		dualService("web", 1, 30080), dualService("local", 2, 30081), dualService("host", 3, 30082), dualService("empty", 4, 30083),
	}
	services[1].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	for _, n := range all[:2] {
		strictRoutes(t, n, outside)
		for _, svc := range services {
			n.services.Add(svc.DeepCopy())
		}
		for f := range a.id.IPs {
			for _, svc := range []string{"web", "local"} {
				n.slices.Add(dualSlice(svc, f, map[string]netip.Addr{"one": a.id.IPs[f].Addr(), "two": b.id.IPs[f].Addr()}))
			}
			n.slices.Add(dualSlice("host", f, map[string]netip.Addr{"two": two.UnderlayIPs[f].Addr()}))
		}
		n.start()
	}
	for _, n := range all[:2] {
		n.waitReady(t)
	}
	attach(t, one, a)
	attach(t, two, b)
	serveName(t, "a", a.Do)
	serveName(t, "b", b.Do)
	serveName(t, "two", two.Do)

	for f, family := range []string{"IPv4", "IPv6"} {
		node := func(n *testNode) netip.Addr { return n.UnderlayIPs[f].Addr() }
		own, clients := joinOf(1).IPs[f].Addr(), joinOf(1).Clients[f].Addr()
		clientsOfTwo := joinOf(2).Clients[f].Addr()
		cluster := func(i int) netip.Addr { return clusterIPs(i)[f] }
		for _, c := range []struct {
			name string
			from func(func() error) error
			to   netip.Addr
			port int
			// who answers, and whom it sees
			backends string
			seen     netip.Addr
		}{
			{"node to ClusterIP", one.Do, cluster(1), 80, "a b", own},
			{"node to its node port", one.Do, node(one), 30080, "a b", own},
			{"node to a scoped node port", one.Do, node(one), 30081, "a b", own},
			{"node to an endpoint on another node's network", one.Do, cluster(3), 80, "two", node(one)},
			{"node to an endpoint on its own network", two.Do, cluster(3), 80, "two", node(two)},
			{"outside to a node port", outside.Do, node(one), 30080, "a b", clients},
			{"outside to a scoped node port", outside.Do, node(one), 30081, "a", node(outside)},
			{"outside to the scoped node port of the other", outside.Do, node(two), 30081, "b", node(outside)},
			{"outside to an endpoint on another node's network", outside.Do, node(one), 30082, "two", node(one)},
			{"pod to its node's port", a.Do, node(one), 30080, "a b", clients},
			{"pod to its node's scoped port", a.Do, node(one), 30081, "a b", clients},
			{"pod to another node's port", a.Do, node(two), 30080, "a b", clientsOfTwo},
			{"pod to its node's port, to an endpoint on another node's network", a.Do, node(one), 30082, "two", node(one)},
		} {
			t.Run(family+" "+c.name, func(t *testing.T) {
				got := map[string]bool{}
				for range 20 {
					name, seen := "", netip.Addr{}
					eventually(t, c.name, func() (err error) {
						name, seen, err = askName(t, c.from, netip.AddrPortFrom(c.to, uint16(c.port)))
						return err
					})
					if got[name] = true; seen != c.seen {
						t.Fatalf("%s saw %s, want %s", name, seen, c.seen)
					}
				}
				for _, want := range strings.Fields(c.backends) {
					if !got[want] {
						t.Errorf("%v answered, want %s", got, c.backends)
					}
				}
				if len(got) != len(strings.Fields(c.backends)) {
					t.Errorf("%v answered, want %s", got, c.backends)
				}
			})
		}
		for name, from := range map[string]func(func() error) error{"node": one.Do, "outside": outside.Do} {
			if _, _, err := askName(t, from, netip.AddrPortFrom(node(one), 30083)); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%s %s to a Service without endpoints: %v, want it refused", family, name, err)
			}
		}
	}
}

// clusterIPs are those of a Service, IPv4 first.
func clusterIPs(i int) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", i))}
}

func dualService(name string, i int, nodePort int32) *corev1.Service {
	ips := clusterIPs(i)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: ips[0].String(), ClusterIPs: []string{ips[0].String(), ips[1].String()},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80, NodePort: nodePort}},
		},
	}
}

// dualSlice is one for family f of a Service whose endpoints listen on 7200, by their nodes.
func dualSlice(svc string, f int, endpoints map[string]netip.Addr) *discoveryv1.EndpointSlice {
	es := sliceOf(svc)
	es.Name, es.Ports[0].Port = svc+"-"+strconv.Itoa(f), new(int32)
	*es.Ports[0].Port = 7200
	es.AddressType = [...]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}[f]
	for node, addr := range endpoints {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}, NodeName: &node})
	}
	return es
}

// strictRoutes gives a node a way out, and lets it take packets only where its answers would go.
func strictRoutes(t *testing.T, n, out *testNode) {
	t.Helper()
	err := n.Do(func() error {
		errs := []error{os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0)}
		for _, via := range out.UnderlayIPs {
			zero := net.IPNet{IP: make(net.IP, len(via.Addr().AsSlice())), Mask: make(net.IPMask, len(via.Addr().AsSlice()))}
			errs = append(errs, netlink.RouteReplace(&netlink.Route{Dst: &zero, Gw: via.Addr().AsSlice()}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serveName answers on port 7200 with a name and whom it sees.
func serveName(t *testing.T, name string, do func(func() error) error) {
	t.Helper()
	var l net.Listener
	if err := do(func() (err error) { l, err = net.Listen("tcp", ":7200"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name+" "+address(conn.RemoteAddr()).String())
			_ = conn.Close()
		}
	}()
}

func askName(t *testing.T, from func(func() error) error, to netip.AddrPort) (name string, seen netip.Addr, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err = from(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		var addr string
		name, addr, _ = strings.Cut(string(text), " ")
		seen, err = netip.ParseAddr(addr)
		return err
	})
	return name, seen, err
}

package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/service/oracle"
)

// servicePort is what clients of Services connect to. Backends listen on the first of the table's ports.
const servicePort = 80

// settleWithin is long enough for a busy machine, and short enough for what is wrong to be seen in the logs.
const settleWithin = 3 * time.Minute

// serviceScene is Services of the same two backends, each on a node of its own, and who asks them.
type serviceScene struct {
	*scene
	pods      []*cluster.Pod
	backends  []oracle.Backend
	customers []customer
}

// customer opens connections in a namespace of the machine.
type customer struct {
	oracle.Client
	netns string
}

// cell is one address and port of a Service that one customer asks, and what it was answered since it last was wrong.
type cell struct {
	customer
	oracle.Target
	url     string
	want    oracle.Expectation
	answers []oracle.Answer
}

func (c *cell) String() string {
	return fmt.Sprintf("%s → %s %s on %q: want %s", c.netns, c.Kind, c.url, c.Target.Node, c.want)
}

// wrong says what is not as the oracle says it; empty if nothing is.
func (c *cell) wrong() string { return c.want.Check(c.Client, c.answers) }

// take takes the answer of the line that tool prints for it.
func (c *cell) take(line string) error {
	f := strings.SplitN(line, " ", 4)
	if len(f) < 4 || f[1] != c.url {
		return fmt.Errorf("asked for %s in %s the tool printed %q", c.url, c.netns, line)
	}
	a := oracle.Answer{Failed: f[3], Refused: strings.Contains(f[3], "connection refused"), Barred: strings.Contains(f[3], "operation not permitted")}
	if f[0] == "ok" {
		addr, name, _ := strings.Cut(f[3], " ")
		seen, err := netip.ParseAddr(addr)
		if err != nil {
			return fmt.Errorf("asked for %s in %s: %w", c.url, c.netns, err)
		}
		a = oracle.Answer{Backend: name, Seen: seen}
	}
	sofar := c.want
	sofar.Each = false // that may come
	if sofar.Check(c.Client, c.answers) != "" {
		c.answers = nil // what was wrong is over, or it is wrong again
	}
	c.answers = append(c.answers, a)
	return nil
}

func newServiceScene(t *testing.T) *serviceScene {
	t.Helper()
	s := &serviceScene{scene: newScene(t, "service")}
	for i, name := range []string{"one", "two"} {
		p := s.pod(i, name)
		s.serve(p.Netns, p.Name)
		s.pods = append(s.pods, p)
		s.backends = append(s.backends, oracle.Backend{Name: name, Node: p.Node.Name, Addrs: p.Addrs()})
		s.customers = append(s.customers, customer{oracle.Client{Addrs: p.Addrs(), Node: p.Node.Name, Backend: name}, p.Netns})
	}
	third := s.pod(0, "client")
	n := s.Nodes[2]
	addr, err := s.Outside(t.Context(), "outside")
	if err != nil {
		t.Fatal(err)
	}
	s.customers = append(s.customers,
		customer{oracle.Client{Addrs: third.Addrs(), Node: third.Node.Name}, third.Netns},
		customer{oracle.Client{Addrs: []netip.Addr{n.Underlay}, Node: n.Name, OnHost: true}, n.Name},
		customer{oracle.Client{Addrs: []netip.Addr{addr}}, "outside"},
	)
	// What a node sends to a ClusterIP has to have a route before it is translated: here no node has the default route that others have.
	v4, _, _ := strings.Cut(cluster.ServiceCIDRs, ",")
	s.run(n.Name, "ip", "route", "add", v4, "dev", "eth1")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, err := n.In(ctx, "ip", "route", "delete", v4)
		_, nerr := s.In(ctx, "", "ip", "netns", "delete", "outside")
		if err := errors.Join(err, nerr); err != nil {
			t.Error(err)
		}
	})
	return s
}

// service makes a Service of type NodePort with a port of each of the protocols, and its EndpointSlices, as Kubernetes' controllers make them. It goes with the test.
func (s *serviceScene) service(name string, external corev1.ServiceExternalTrafficPolicy, protocols ...corev1.Protocol) *corev1.Service {
	s.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ExternalTrafficPolicy: external, IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
		},
	}
	for _, p := range protocols {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: strings.ToLower(string(p)), Protocol: p, Port: servicePort, TargetPort: intstr.FromInt32(tablePorts[0])})
	}
	s.publish(svc, s.pods)
	return svc
}

// publish creates a Service, and EndpointSlices for it. They go with the test.
func (s *scene) publish(svc *corev1.Service, pods []*cluster.Pod) {
	s.t.Helper()
	if err := s.API.Create(s.t.Context(), svc); err != nil {
		s.t.Fatal(err)
	}
	objects := []client.Object{svc}
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: s.namespace, GenerateName: svc.Name + "-", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
			AddressType: family,
		}
		for _, p := range svc.Spec.Ports {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &p.TargetPort.IntVal})
		}
		for _, p := range pods {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{p.Addrs()[i].String()}, NodeName: &p.Node.Name, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
			})
		}
		if err := s.API.Create(s.t.Context(), slice); err != nil {
			s.t.Fatal(err)
		}
		objects = append(objects, slice)
	}
	s.t.Cleanup(func() {
		for _, o := range objects {
			if err := client.IgnoreNotFound(s.API.Delete(context.WithoutCancel(s.t.Context()), o)); err != nil {
				s.t.Error(err)
			}
		}
	})
}

// cells are what the customers ask of a Service: pods its ClusterIPs, the node that of the family that it has a link of, and the node and who is outside the node ports of a
// node with a backend and of one without.
func (s *serviceScene) cells(svc *corev1.Service, backends []oracle.Backend) []*cell {
	var out []*cell
	for _, c := range s.customers {
		for _, p := range svc.Spec.Ports {
			add := func(t oracle.Target, number int32) {
				if !slices.ContainsFunc(c.Addrs, func(a netip.Addr) bool { return a.Is4() == t.Addr.Is4() }) {
					return
				}
				url := fmt.Sprintf("%s://%s/%s", strings.ToLower(string(p.Protocol)), netip.AddrPortFrom(t.Addr, uint16(number)), echo.AskName)
				want := oracle.Expect(svc, backends, c.Client, t)
				if want.Refused && p.Protocol == sctp && (c.Node == "" || c.OnHost) {
					want.Dropped, want.Why = true, want.Why+"; a node does so by ICMP, and Linux's SCTP takes no port unreachable for a refusal"
				}
				out = append(out, &cell{customer: c, Target: t, url: url, want: want})
			}
			for _, ip := range svc.Spec.ClusterIPs {
				if c.Node != "" {
					add(oracle.Target{Kind: oracle.ClusterIP, Addr: netip.MustParseAddr(ip)}, p.Port)
				}
			}
			for _, n := range []*cluster.Node{s.Nodes[0], s.Nodes[2]} {
				if c.Node == "" || c.OnHost {
					add(oracle.Target{Kind: oracle.NodePort, Addr: n.Underlay, Node: n.Name}, p.NodePort)
				}
			}
		}
	}
	return out
}

// ask asks the cells, each customer its own at the same time as the others.
func (s *serviceScene) ask(ctx context.Context, cells []*cell) error {
	g, ctx := errgroup.WithContext(ctx)
	for netns, own := range byCustomer(cells) {
		g.Go(func() error {
			cmd := []string{"tool", "probe"}
			for _, c := range own {
				cmd = append(cmd, c.url)
			}
			out, err := s.In(ctx, netns, cmd...)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) != len(own) {
				return fmt.Errorf("%d answers to %d questions in %s", len(lines), len(own), netns)
			}
			for i, c := range own {
				err = errors.Join(err, c.take(lines[i]))
			}
			return err
		})
	}
	return g.Wait()
}

func byCustomer(cells []*cell) map[string][]*cell {
	out := map[string][]*cell{}
	for _, c := range cells {
		out[c.netns] = append(out[c.netns], c)
	}
	return out
}

// settle asks until everything is as the oracle says. Who was answered as it should be is not asked again.
func (s *serviceScene) settle(what string, cells []*cell) {
	s.t.Helper()
	start, rounds, asked, left := time.Now(), 0, 0, cells
	var before error // of the last round that came to its end
	ctx, cancel := context.WithTimeout(s.t.Context(), settleWithin)
	defer cancel()
	err := cluster.Await(ctx, what, func(ctx context.Context) error {
		rounds++
		asked += len(left)
		if err := s.ask(ctx, left); err != nil {
			return err
		}
		left = slices.DeleteFunc(slices.Clone(left), func(c *cell) bool { return c.wrong() == "" })
		if len(left) == 0 {
			return nil
		}
		before = fmt.Errorf("after %d rounds %d of %d are wrong", rounds, len(left), len(cells))
		for _, c := range left {
			before = errors.Join(before, fmt.Errorf("%s; %s", c, c.wrong()))
		}
		return before
	})
	if err != nil {
		s.t.Fatalf("%v; before: %v", err, before)
	}
	s.t.Logf("%s: %d cells are as they should be, after %s, %d connections in %d rounds", what, len(cells), time.Since(start).Round(100*time.Millisecond), asked, rounds)
}

// TestKernelService: Services over TCP, UDP and SCTP, in both families, with a backend on either of two nodes: asked by the backends themselves, a pod and a node, and by
// node ports from a node and from outside. What is expected is the oracle's. Without endpoints they refuse.
func TestKernelService(t *testing.T) {
	s := newServiceScene(t)
	all := s.service("all", corev1.ServiceExternalTrafficPolicyCluster, tcp, udp, sctp)
	local := s.service("local", corev1.ServiceExternalTrafficPolicyLocal, sctp)
	s.settle("Services", slices.Concat(s.cells(all, s.backends), s.cells(local, s.backends)))
	if err := s.API.DeleteAllOf(t.Context(), &discoveryv1.EndpointSlice{}, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	s.settle("Services without endpoints", slices.Concat(s.cells(all, nil), s.cells(local, nil)))
}

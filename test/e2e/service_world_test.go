package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/service/oracle"
)

const (
	// servicePort is what clients connect to, over TCP and UDP; backends serve on port 7, those on a node's own network on hostBackendPort.
	servicePort, hostBackendPort = 80, 17007
	// serviceTries is how often each target is asked: two backends that are drawn evenly have both answered but once in 10,000 times, and then it is asked again.
	serviceTries = 14
	// askTimeout is for how long a client waits; what is dropped takes so long.
	askTimeout = 2 * time.Second
	// settleLongest bounds the patience with a busy machine: what is wrong is to be told before it is forgotten.
	settleLongest = time.Minute
)

// customer opens connections to Services from some place.
type customer struct {
	oracle.Client
	name string
	run  func(ctx context.Context, cmd ...string) (string, error)
}

// podCustomer is a pod of the lab's image.
func podCustomer(p reach.Pod) customer {
	return customer{
		Client: oracle.Client{Addrs: p.IPs, Node: p.Node}, name: "pod " + p.Name + " on " + p.Node,
		run: func(ctx context.Context, args ...string) (string, error) {
			return inPod(ctx, p.Namespace, p.Name, append([]string{"/bin/probe"}, args...)...)
		},
	}
}

// machineCustomer is a process on a node's own network, or on the outside machine.
func machineCustomer(machine string) customer {
	c := customer{name: "host " + machine, Client: oracle.Client{Addrs: cluster.NodeIPs(machine), Node: machine, OnHost: true}}
	if len(c.Addrs) == 0 {
		c.name, c.Client = machine, oracle.Client{Addrs: cluster.OutsideIPs()}
	}
	c.run = func(ctx context.Context, args ...string) (string, error) {
		out, err := cluster.Exec(ctx, machine, append([]string{"/proc/1/exe", "probe"}, args...)...)
		if out != "" {
			return out, nil // its status says that a target did not answer, and the lines which
		}
		return out, err
	}
	return c
}

// ask opens connections to each target, one after another until one fails, and returns the answers of each.
func (c customer) ask(ctx context.Context, targets []string) (map[string][]oracle.Answer, error) {
	out, err := c.run(ctx, append([]string{"--timeout=" + askTimeout.String(), fmt.Sprintf("--count=%d", serviceTries)}, targets...)...)
	if err != nil {
		return nil, fmt.Errorf("ask from %s: %w", c.name, err)
	}
	answers := map[string][]oracle.Answer{}
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) < 4 {
			return nil, fmt.Errorf("%s: probe printed %q", c.name, line)
		}
		answers[f[1]] = append(answers[f[1]], answer(f[0], f[3]))
	}
	return answers, nil
}

// answer reads what a line of probe says: its first word, and its text, which is "ADDRESS NAME" of an answer, else what went wrong.
func answer(word, text string) oracle.Answer {
	if word != "ok" {
		return oracle.Answer{Failed: text, Refused: strings.Contains(text, "connection refused"), Barred: strings.Contains(text, "operation not permitted")}
	}
	addr, name, _ := strings.Cut(text, " ")
	seen, err := netip.ParseAddr(addr)
	if err != nil {
		return oracle.Answer{Failed: "not understood: " + text}
	}
	return oracle.Answer{Backend: name, Seen: seen}
}

// backend is an echoserver that is known to the oracle by its pod's name.
func backend(p reach.Pod) oracle.Backend {
	return oracle.Backend{Name: p.Name, Node: p.Node, Addrs: p.IPs}
}

// serviceBackend is a pod of a Service that selects by role; onHostBackend is one on its node's own network.
func serviceBackend(ns, name, node, role string) *corev1.Pod {
	p := server(ns, name, node)
	p.Labels["role"] = role
	return p
}

func onHostBackend(ns, name, node, role string) *corev1.Pod {
	p := serviceBackend(ns, name, node, role)
	p.Spec.HostNetwork = true
	c := &p.Spec.Containers[0]
	// Bound to the node's addresses one by one: a UDP server that is bound to none answers from the one that is nearest to the client, as if it were another's answer.
	c.Command = []string{"sh", "-c", fmt.Sprintf(`for ip in $(echo $IPS | tr , ' '); do case $ip in *:*) ip="[$ip]";; esac; echoserver -name %[1]s -http '' -tcp $ip:%[2]d -udp $ip:%[2]d & done
		exec echoserver -name %[1]s -http :%[3]d -tcp '' -udp ''`, name, hostBackendPort, hostBackendPort+1)}
	c.Args = nil
	c.Env = []corev1.EnvVar{{Name: "IPS", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIPs"}}}}
	c.ReadinessProbe.HTTPGet.Port = intstr.FromInt32(hostBackendPort + 1)
	return p
}

// echoService is a Service of both protocols and all families that the cluster has, for pods of a role.
func echoService(ns, name, role string, port int32) *corev1.Service {
	policy := corev1.IPFamilyPolicyPreferDualStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"role": role}, IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				{Name: "tcp", Port: servicePort, TargetPort: intstr.FromInt32(port)},
				{Name: "udp", Port: servicePort, TargetPort: intstr.FromInt32(port), Protocol: corev1.ProtocolUDP},
			},
		},
	}
}

// counter is an address and port of a Service, and how it is asked.
type counter struct {
	oracle.Target
	url string
}

// counters are all targets that a Service has; via says to which node the network outside takes an address.
func counters(svc *corev1.Service, via map[netip.Addr]string) []counter {
	var out []counter
	for _, p := range svc.Spec.Ports {
		scheme := strings.ToLower(string(p.Protocol))
		add := func(t oracle.Target, port int32) {
			out = append(out, counter{Target: t, url: target(scheme, t.Addr, uint16(port)) + "/" + echo.AskName})
		}
		for _, ip := range svc.Spec.ClusterIPs {
			add(oracle.Target{Kind: oracle.ClusterIP, Addr: netip.MustParseAddr(ip)}, p.Port)
		}
		for _, ip := range svc.Spec.ExternalIPs {
			addr := netip.MustParseAddr(ip)
			add(oracle.Target{Kind: oracle.ExternalIP, Addr: addr, Node: via[addr]}, p.Port)
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			addr := netip.MustParseAddr(in.IP)
			add(oracle.Target{Kind: oracle.LoadBalancer, Addr: addr, Node: via[addr]}, p.Port)
		}
		if p.NodePort == 0 {
			continue
		}
		for _, node := range cluster.NodeNames() {
			for _, addr := range cluster.NodeIPs(node) {
				add(oracle.Target{Kind: oracle.NodePort, Addr: addr, Node: node}, p.NodePort)
			}
		}
	}
	return out
}

// inquiry is what one customer asks of a Service.
type inquiry struct {
	svc      *corev1.Service
	backends []oracle.Backend
	counters []counter
}

// ask asks everything, and says cell by cell what is not as the oracle says it.
func (q inquiry) ask(ctx context.Context, c customer) report {
	var targets []string
	var of []counter
	for _, at := range q.counters {
		if at.Kind == oracle.ClusterIP && c.Node == "" {
			continue // ClusterIPs are the cluster's own
		}
		of, targets = append(of, at), append(targets, at.url)
	}
	if len(targets) == 0 {
		return report{}
	}
	answers, err := c.ask(ctx, targets)
	if err != nil {
		return report{err: err}
	}
	r := report{asked: len(of)}
	for _, at := range of {
		want := oracle.Expect(q.svc, q.backends, c.Client, at.Target)
		if diff := want.Check(c.Client, answers[at.url]); diff != "" {
			r.wrong = append(r.wrong, fmt.Sprintf("%s → %s %s%s: %s; want %s", c.name, at.Kind, at.url, arriving(at.Target), diff, want))
		}
	}
	return r
}

// arriving says at which node a connection from outside arrives.
func arriving(t oracle.Target) string {
	if t.Node == "" {
		return ""
	}
	return " at " + t.Node
}

// settle asks until everything is as it should be, and else fails the test for each cell. Whoever has the right answers is not asked again.
func (q inquiry) settle(t *testing.T, customers []customer) {
	t.Helper()
	start, cells := time.Now(), 0
	for within := min(patience(settleTimeout), settleLongest); len(customers) > 0; time.Sleep(200 * time.Millisecond) {
		reports := q.askAll(t.Context(), customers)
		over := time.Since(start) > within
		var again []customer
		for i, r := range reports {
			if r.err == nil && len(r.wrong) == 0 {
				cells += r.asked
				continue
			}
			again = append(again, customers[i])
			if over {
				r.tell(t, customers[i])
			}
		}
		if customers = again; over {
			break
		}
	}
	t.Logf("%d cells are as they should be, after %s", cells, time.Since(start).Round(100*time.Millisecond))
}

// report is what became of one customer's questions.
type report struct {
	asked int
	wrong []string
	err   error
}

func (r report) tell(t *testing.T, c customer) {
	t.Helper()
	if r.err != nil {
		t.Error(r.err)
	}
	for _, w := range r.wrong {
		t.Error(w)
	}
	if len(r.wrong) > 0 {
		t.Errorf("%s: %d of %d cells are wrong", c.name, len(r.wrong), r.asked)
	}
}

func (q inquiry) askAll(ctx context.Context, customers []customer) []report {
	reports := make([]report, len(customers))
	var wg sync.WaitGroup
	for i, c := range customers {
		wg.Go(func() { reports[i] = q.ask(ctx, c) })
	}
	wg.Wait()
	return reports
}

// ofFamilies keeps of pairs of an IPv4 and an IPv6 address those that the cluster has.
func ofFamilies(pairs ...[2]string) []string {
	var out []string
	for _, p := range pairs {
		out = append(out, p[:]...)
	}
	return slices.DeleteFunc(out, func(a string) bool {
		is4 := netip.MustParseAddr(a).Is4()
		return is4 && cluster.IPFamily() == lab.IPv6 || !is4 && cluster.IPFamily() == lab.IPv4
	})
}

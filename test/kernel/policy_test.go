package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/policy/oracle"
)

const (
	tcp  = corev1.ProtocolTCP
	udp  = corev1.ProtocolUDP
	sctp = corev1.ProtocolSCTP
)

// tablePorts are those on which every pod of the table answers TCP, UDP and SCTP. The first is that of a name, which is SCTP's.
var tablePorts = []int32{7000, 7001}

const namedSCTP = "association"

// fewPolicies are the cases of make test. POLICIES=all plays every one.
var fewPolicies = []string{"an SCTP port", "egress to an SCTP port"}

// policyTable is a truth table: pods of two namespaces, and the nodes, ask all pods.
type policyTable struct {
	*scene
	rules oracle.Cluster
	pods  []tablePod
}

type tablePod struct {
	*cluster.Pod
	is *oracle.Pod
}

func newPolicyTable(t *testing.T) *policyTable {
	t.Helper()
	s := newScene(t, "policy")
	w := &policyTable{scene: s, rules: oracle.Cluster{Namespaces: map[string]map[string]string{}}}
	for i, name := range []types.NamespacedName{{Namespace: "policy", Name: "a"}, {Namespace: "policy", Name: "b"}, {Namespace: "policy-other", Name: "c"}} {
		if err := s.Namespace(t.Context(), name.Namespace); err != nil {
			t.Fatal(err)
		}
		var ns corev1.Namespace
		if err := s.API.Get(t.Context(), client.ObjectKey{Name: name.Namespace}, &ns); err != nil {
			t.Fatal(err)
		}
		w.rules.Namespaces[ns.Name] = ns.Labels
		p, err := s.Nodes[i].Pod(t.Context(), name, func(p *corev1.Pod) {
			p.Labels = map[string]string{"pod": name.Name}
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: namedSCTP, Protocol: sctp, ContainerPort: tablePorts[0]}}
		})
		if err != nil {
			t.Fatal(err)
		}
		s.removed(p)
		s.serve(p.Netns, p.Name)
		w.pods = append(w.pods, tablePod{p, &oracle.Pod{
			Namespace: name.Namespace, Name: name.Name, Labels: p.Labels, Node: p.Node.Name, Ports: p.Spec.Containers[0].Ports,
		}})
	}
	return w
}

// serve answers on the table's ports in a namespace, under a name.
func (s *scene) serve(netns, name string) {
	s.t.Helper()
	args := []string{"tool", "serve", name}
	for _, port := range tablePorts {
		args = append(args, fmt.Sprint(port))
	}
	s.says(s.daemon(netns, args...), "listening")
}

// question is one flow of the table, and the URL that asks it.
type question struct {
	flow   oracle.Flow
	target string
}

// questions are all that one end can ask. addrs are the end's.
func (w *policyTable) questions(from oracle.End, addrs []netip.Addr) []question {
	var out []question
	for _, to := range w.pods {
		if from.Pod == to.is {
			continue
		}
		for _, ip := range to.Addrs() {
			i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == ip.Is4() })
			if i < 0 {
				continue
			}
			from.Addr = addrs[i]
			for _, protocol := range []corev1.Protocol{tcp, udp, sctp} {
				for _, port := range tablePorts {
					out = append(out, question{
						flow:   oracle.Flow{From: from, To: oracle.End{Addr: ip, Pod: to.is}, Protocol: protocol, Port: port},
						target: fmt.Sprintf("%s://%s", strings.ToLower(string(protocol)), netip.AddrPortFrom(ip, uint16(port))),
					})
				}
			}
		}
	}
	return out
}

// differences asks everything at once, and says what is not as the oracle says it.
func (w *policyTable) differences(ctx context.Context) (asked int, wrong []string, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	check := func(netns string, questions []question) {
		g.Go(func() error {
			cmd := []string{"tool", "probe"}
			for _, q := range questions {
				cmd = append(cmd, q.target)
			}
			out, err := w.In(ctx, netns, cmd...)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) != len(questions) {
				return fmt.Errorf("%d answers to %d questions in %s", len(lines), len(questions), netns)
			}
			mu.Lock()
			defer mu.Unlock()
			for i, q := range questions {
				asked++
				verdict := w.rules.Judge(q.flow)
				if got := strings.HasPrefix(lines[i], "ok "); got != verdict.Allowed {
					wrong = append(wrong, fmt.Sprintf("from %s: %s, want %v (%s)", netns, lines[i], verdict.Allowed, verdict.Why))
				}
			}
			return nil
		})
	}
	for _, p := range w.pods {
		check(p.Netns, w.questions(oracle.End{Pod: p.is}, p.Addrs()))
	}
	for _, n := range w.Nodes {
		check(n.Name, w.questions(oracle.End{Node: n.Name}, []netip.Addr{n.Underlay}))
	}
	err = g.Wait()
	slices.Sort(wrong)
	return asked, wrong, err
}

// settle waits until everything is as the oracle says.
func (w *policyTable) settle(t *testing.T) {
	t.Helper()
	start, rounds := time.Now(), 0
	var before error
	err := cluster.Await(t.Context(), "policies", func(ctx context.Context) error {
		rounds++
		asked, wrong, err := w.differences(ctx)
		switch {
		case err != nil:
			return err
		case len(wrong) > 0:
			before = fmt.Errorf("%d of %d flows are wrong, the first:\n%s", len(wrong), asked, strings.Join(wrong[:min(8, len(wrong))], "\n"))
			return before
		case asked == 0:
			return errors.New("nothing was asked")
		}
		t.Logf("%d flows as they should be, after %s, asked %d times; before: %v", asked, time.Since(start).Round(100*time.Millisecond), rounds, before)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// play makes a case's policies, waits until everything is as the oracle says, and takes them away.
func (w *policyTable) play(t *testing.T, c policyCase) {
	t.Helper()
	defer func() {
		for _, np := range w.rules.Policies {
			if err := client.IgnoreNotFound(w.API.Delete(context.WithoutCancel(t.Context()), np)); err != nil {
				t.Error(err)
			}
		}
		w.rules.Policies = nil
	}()
	for _, spec := range c.specs {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, GenerateName: "p-"}, Spec: spec}
		if err := w.API.Create(t.Context(), np); err != nil {
			t.Fatal(err)
		}
		w.rules.Policies = append(w.rules.Policies, np)
	}
	w.settle(t)
}

// TestKernelPolicySCTP plays policies of SCTP ports, and asks over SCTP, TCP and UDP, in both families: as an evaluator of the specification says it, which knows nothing of
// the product. The userspace datapath of Open vSwitch 3.1 does not track SCTP; the rest of the table is of the end-to-end tests (TestPolicyTable).
func TestKernelPolicySCTP(t *testing.T) {
	w := newPolicyTable(t)
	w.settle(t) // without any policy everything answers, or the table means nothing
	all, played := os.Getenv("POLICIES") == "all", 0
	for _, c := range policyCases() {
		if !all && !slices.Contains(fewPolicies, c.name) {
			continue
		}
		played++
		t.Run(c.name, func(t *testing.T) { w.play(t, c) })
	}
	if !all && played != len(fewPolicies) {
		t.Errorf("%d cases were played, want %d: a name has changed", played, len(fewPolicies))
	}
	w.settle(t) // nothing is left of them
}

// policyCase is policies that hold at the same time.
type policyCase struct {
	name  string
	specs []networkingv1.NetworkPolicySpec
}

// policyCases are the rows of the table.
func policyCases() []policyCase {
	ingress := func(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}},
		}
	}
	egress := func(to []networkingv1.NetworkPolicyPeer, ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: []networkingv1.NetworkPolicyEgressRule{{To: to, Ports: ports}},
		}
	}
	fromPodA := ingress(port(sctp, intstr.FromInt32(tablePorts[1])))
	fromPodA.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod": "a"}}}}
	other := []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: "policy-other"}}}}
	first := port(sctp, intstr.FromInt32(tablePorts[0]))
	span := port(sctp, intstr.FromInt32(tablePorts[0]+1))
	span.EndPort = new(tablePorts[1] + 10)
	return []policyCase{
		{"default deny both ways", []networkingv1.NetworkPolicySpec{{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}}},
		{"an SCTP port", []networkingv1.NetworkPolicySpec{ingress(first)}},
		{"a range of SCTP ports", []networkingv1.NetworkPolicySpec{ingress(span)}},
		{"a named SCTP port", []networkingv1.NetworkPolicySpec{ingress(port(sctp, intstr.FromString(namedSCTP)))}},
		{"SCTP, all ports", []networkingv1.NetworkPolicySpec{ingress(networkingv1.NetworkPolicyPort{Protocol: new(sctp)})}},
		{"an SCTP port to one pod", []networkingv1.NetworkPolicySpec{fromPodA}},
		{"the same number in TCP", []networkingv1.NetworkPolicySpec{ingress(port(tcp, intstr.FromInt32(tablePorts[0])))}},
		{"one port of each", []networkingv1.NetworkPolicySpec{ingress(first, port(udp, intstr.FromInt32(tablePorts[1])))}},
		{"egress to an SCTP port", []networkingv1.NetworkPolicySpec{egress(other, first)}},
		{"egress to an SCTP port of anybody", []networkingv1.NetworkPolicySpec{egress(nil, first)}},
		{"two policies", []networkingv1.NetworkPolicySpec{ingress(first), fromPodA}},
	}
}

func port(protocol corev1.Protocol, number intstr.IntOrString) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &number}
}

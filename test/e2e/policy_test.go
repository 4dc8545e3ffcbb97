package e2e

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
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/policy/oracle"
)

// In make test these cases are played, with POLICIES=all every one.
var fewPolicies = []string{"default deny of ingress", "pods of a namespace", "named port, two numbers", "ipBlock with except", "egress to pods and a port"}

// settleTimeout is how long a policy may take until all that it says is so, an election of OVN's databases on the way included.
const settleTimeout = 20 * time.Second

// policyWorld is three namespaces of three pods, nodes, and the outside.
type policyWorld struct {
	namespaces map[string]string // full name by letter: x, y, z
	cluster    oracle.Cluster
	pods       []worldPod
	nodes      []string
}

type worldPod struct {
	oracle.Pod
	ips []netip.Addr
	// clusterIPs are of a Service that is this pod alone, if there is one.
	clusterIPs []netip.Addr
	// vm is nil if it is a pod.
	vm *machine
}

// newPolicyWorld makes it; the pod of that name, "x/a", is a VM, none if it is empty.
func newPolicyWorld(t *testing.T, vm string) *policyWorld {
	t.Helper()
	w := &policyWorld{namespaces: map[string]string{}, nodes: cluster.NodeNames(), cluster: oracle.Cluster{Namespaces: map[string]map[string]string{}}}
	var replaced *corev1.Pod
	for i, letter := range []string{"x", "y", "z"} {
		labels := map[string]string{"ns": letter, "team": []string{"red", "blue"}[i%2]}
		ns := namespace(t, labels)
		w.namespaces[letter] = ns
		w.cluster.Namespaces[ns] = labels
		for j, name := range []string{"a", "b", "c"} {
			p := policyPod(ns, name, w.nodes[(i+j)%len(w.nodes)], int32(7+8074*(j%2)))
			if letter+"/"+name == vm {
				replaced = p
				continue
			}
			create(t, p)
		}
	}
	if replaced != nil {
		w.pods = append(w.pods, policyVMOf(t, replaced)) // while the pods come
	}
	for _, ns := range w.namespaces {
		until(t, &corev1.PodList{}, ns, func(p *corev1.Pod) bool {
			known := slices.ContainsFunc(w.pods, func(q worldPod) bool { return q.Namespace == p.Namespace && q.Name == p.Name })
			if isReady(p) && !known && p.Labels[kubevirtv1.AppLabel] == "" {
				w.pods = append(w.pods, worldPod{Pod: inOracle(p), ips: end(p).IPs})
			}
			return len(w.of(ns)) == 3
		})
	}
	return w
}

// inOracle is a pod as the oracle has it.
func inOracle(p *corev1.Pod) oracle.Pod {
	q := oracle.Pod{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Node: p.Spec.NodeName}
	for i := range p.Spec.Containers {
		q.Ports = append(q.Ports, p.Spec.Containers[i].Ports...)
	}
	return q
}

func (w *policyWorld) of(ns string) []worldPod {
	var out []worldPod
	for _, p := range w.pods {
		if p.Namespace == ns {
			out = append(out, p)
		}
	}
	return out
}

// policyPod serves TCP and UDP on 7 and 8081; its TCP port of that number is called web.
func policyPod(ns, name, node string, web int32) *corev1.Pod {
	p := server(ns, name, node)
	p.Labels = map[string]string{"pod": name, "tier": map[string]string{"a": "front", "b": "back", "c": "back"}[name]}
	second := corev1.Container{Name: "second", Image: lab.BusyboxImage, Command: []string{"/bin/echoserver"}, Args: []string{"-http", "", "-tcp", ":8081", "-udp", ":8081"}}
	p.Spec.Containers = append(p.Spec.Containers, second)
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: web}, {Name: "dns", ContainerPort: 7, Protocol: corev1.ProtocolUDP}}
	return p
}

// question is one flow of the truth table, and how it is asked.
type question struct {
	flow   oracle.Flow
	from   string // for people
	target string
}

// questions are those that one asker is asked: a pod, or a node.
func (w *policyWorld) questions(from oracle.End, name string, source func(netip.Addr) netip.Addr) []question {
	var out []question
	ask := func(to oracle.End, ip, at netip.Addr) {
		for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			for _, port := range []uint16{7, 8081} {
				if to.Pod == nil && port != 7 {
					continue // the outside serves 7 alone
				}
				f, t := from, to
				f.Addr, t.Addr = source(ip), ip
				out = append(out, question{
					flow: oracle.Flow{From: f, To: t, Protocol: protocol, Port: int32(port)}, from: name, target: target(strings.ToLower(string(protocol)), at, port),
				})
			}
		}
	}
	for i := range w.pods {
		p := &w.pods[i]
		for _, ip := range p.ips {
			ask(oracle.End{Pod: &p.Pod}, ip, ip)
		}
		for _, ip := range p.clusterIPs {
			if from.Pod != nil { // it is judged by the endpoint
				ask(oracle.End{Pod: &p.Pod}, sameFamily(p.ips, ip), ip)
			}
		}
	}
	if from.Pod != nil {
		for _, ip := range cluster.OutsideIPs() {
			ask(oracle.End{}, ip, ip)
		}
	}
	return out
}

// ofPod are the questions of a pod, ofNode those of a node.
func (w *policyWorld) ofPod(p *worldPod) []question {
	return w.questions(oracle.End{Pod: &p.Pod}, p.Namespace+"/"+p.Name, func(to netip.Addr) netip.Addr { return sameFamily(p.ips, to) })
}

func (w *policyWorld) ofNode(node string) []question {
	return w.questions(oracle.End{Node: node}, node, func(to netip.Addr) netip.Addr { return sameFamily(cluster.NodeIPs(node), to) })
}

// sameFamily picks the address of a's family.
func sameFamily(addrs []netip.Addr, a netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() })
	return addrs[max(i, 0)]
}

// right has for each asker how many questions were answered as the oracle says it, all of that asker's: it is not asked again. On a slow machine there is always somebody who is not answered in time.
type right map[string]int

func (r right) asked() (n int) {
	for _, of := range r {
		n += of
	}
	return n
}

// differences asks everybody who is not right yet everything at once, and says what is not as the oracle says it.
func (w *policyWorld) differences(ctx context.Context, already right) (asked int, wrong []wrongAnswer, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(6)
	check := func(questions []question, ask func(ctx context.Context, targets ...string) (string, error)) {
		if already[questions[0].from] > 0 {
			return
		}
		g.Go(func() error {
			cmd := []string{}
			for _, q := range questions {
				cmd = append(cmd, q.target)
			}
			out, err := ask(ctx, cmd...)
			if err != nil && out == "" {
				return err
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) != len(questions) {
				return fmt.Errorf("%d answers to %d questions", len(lines), len(questions))
			}
			mu.Lock()
			defer mu.Unlock()
			before := len(wrong)
			for i, q := range questions {
				asked++
				verdict := w.cluster.Judge(q.flow)
				if got := strings.HasPrefix(lines[i], "ok "); got != verdict.Allowed {
					wrong = append(wrong, wrongAnswer{question: q, said: lines[i], want: verdict})
				}
			}
			if len(wrong) == before {
				already[questions[0].from] = len(questions)
			}
			return nil
		})
	}
	for i := range w.pods {
		p := &w.pods[i]
		questions := w.ofPod(p)
		check(questions, func(ctx context.Context, targets ...string) (string, error) {
			if p.vm != nil {
				return p.askInGuest(ctx, w.order(questions, min(patience(permittedWithin), watchedLongest)))
			}
			return inPod(ctx, p.Namespace, p.Name, append([]string{"/bin/probe", "-timeout", "1s"}, targets...)...)
		})
	}
	for _, node := range w.nodes {
		check(w.ofNode(node), func(ctx context.Context, targets ...string) (string, error) {
			return cluster.Exec(ctx, node, append([]string{"/proc/1/exe", "probe", "--timeout", "1s"}, targets...)...)
		})
	}
	err = g.Wait()
	slices.SortFunc(wrong, func(a, b wrongAnswer) int { return strings.Compare(a.String(), b.String()) })
	return asked, wrong, err
}

// play makes a case's policies, waits until everything is as the oracle says, does what is to be done under them, and takes them away again.
func (w *policyWorld) play(t *testing.T, c policyCase, then func()) {
	t.Helper()
	w.cluster.Policies = c.make(w.namespaces)
	for _, np := range w.cluster.Policies {
		if err := cluster.api.Create(t.Context(), np); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, np := range w.cluster.Policies {
			if err := client.IgnoreNotFound(cluster.api.Delete(context.WithoutCancel(t.Context()), np)); err != nil {
				t.Error(err)
			}
		}
		w.cluster.Policies = nil
	}()
	w.settle(t)
	then()
}

// settle waits until everything is as the oracle says.
func (w *policyWorld) settle(t *testing.T) {
	t.Helper()
	start, already, history := time.Now(), right{}, mistakes{}
	defer func() {
		if t.Failed() {
			history.explain(t)
		}
	}()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		asked, wrong, err := w.differences(ctx, already)
		history = append(history, wrong)
		switch {
		case err != nil:
			return err
		case len(wrong) > 0:
			return fmt.Errorf("%d of %d wrong, the first: %v", len(wrong), asked, wrong[:min(8, len(wrong))])
		case already.asked() < len(w.pods)*len(w.pods)*4*families():
			return errors.New("too few questions were asked")
		}
		t.Logf("%d flows as they should be, after %s", already.asked(), time.Since(start).Round(100*time.Millisecond))
		history = nil // whatever else fails, this has not
		return nil
	})
}

// Every field of NetworkPolicy, on every pair of pods, protocol, port and family, directly and by a ClusterIP, from the nodes, and to the outside: as an evaluator of the specification says it, which
// knows nothing of the product.
func TestPolicyTable(t *testing.T) {
	w := newPolicyWorld(t, "")
	w.addServices(t)
	w.settle(t) // without any policy everything answers, or the table means nothing
	casesToPlay(t, fewPolicies, func(t *testing.T, c policyCase) { w.play(t, c, func() {}) })
	w.settle(t) // nothing is left of them
	consistent(t)
}

// casesToPlay plays the few, or with POLICIES=all every one.
func casesToPlay(t *testing.T, few []string, play func(*testing.T, policyCase)) {
	t.Helper()
	all := os.Getenv("POLICIES") == "all"
	played := 0
	for _, c := range policyCases() {
		if !all && !slices.Contains(few, c.name) {
			continue
		}
		played++
		t.Run(c.name, func(t *testing.T) { play(t, c) })
	}
	if !all && played != len(few) {
		t.Errorf("%d cases were played, want %d: a name has changed", played, len(few))
	}
}

// policyCase is one or several policies that hold at the same time.
type policyCase struct {
	name string
	make func(ns map[string]string) []*networkingv1.NetworkPolicy
}

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// In make test these cases are played with a VM that moves, with POLICIES=all every one.
var fewVMPolicies = []string{"default deny of both", "named port, two numbers", "both ends"}

const (
	// forbiddenWithin is how long a connection that is forbidden is tried, permittedWithin how long one that is permitted may take: the VM is stopped for a while,
	// and what is lost meanwhile is sent again after a second, and after three.
	forbiddenWithin = time.Second
	permittedWithin = 8 * time.Second
	askedEvery      = time.Second
	// watchedBefore and watchedPast are for how long everything is asked before a migration and after it.
	watchedBefore = time.Second
	watchedPast   = 3 * time.Second
)

// policyVMOf boots a VM in place of a pod, with its labels, its name and its ports.
func policyVMOf(t *testing.T, p *corev1.Pod) worldPod {
	t.Helper()
	node := p.Spec.NodeSelector[corev1.LabelHostname]
	o := lab.VMOptions{Namespace: p.Namespace, Name: p.Name, Node: node, Labels: p.Labels}
	q := worldPod{Pod: inOracle(p)}
	q.Node = node
	for _, port := range q.Ports {
		o.Ports = append(o.Ports, kubevirtv1.Port{Name: port.Name, Port: port.ContainerPort, Protocol: string(port.Protocol)})
	}
	q.vm = bootVM(t, o)
	q.ips = q.vm.ips
	if at := q.vm.node(t); at != node {
		t.Fatalf("VM %s runs on %s, want %s, which it was asked to prefer", q.vm, at, node)
	}
	return q
}

// desk lets the guest ask, from the node where the VM is: what a node itself sends to a VM on it no policy forbids.
func (p *worldPod) desk() (*echo.Desk, error) {
	ns, err := cluster.Namespace(p.Node)
	if err != nil {
		return nil, err
	}
	return echo.NewDesk(traffic.Place{Namespace: ns}.Dial, netip.AddrPortFrom(p.ips[0], echo.DeskPort)), nil
}

// askInGuest asks every question once, those of an order, and prints what probe prints.
func (p *worldPod) askInGuest(ctx context.Context, o echo.Order) (string, error) {
	desk, err := p.desk()
	if err != nil {
		return "", err
	}
	tallies, err := askedOnce(ctx, desk, o)
	if err != nil {
		return "", fmt.Errorf("VM %s: %w", p.vm, err)
	}
	lines := make([]string, 0, len(tallies))
	for _, t := range tallies {
		line := fmt.Sprintf("ok %s %s", t.Target, t.Slowest)
		if t.Answered == 0 {
			line = fmt.Sprintf("failed %s %s", t.Target, strings.ReplaceAll(t.Failure, "\n", "; "))
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n"), nil
}

// askedOnce has a guest ask every question of an order once, and returns what became of it.
func askedOnce(ctx context.Context, desk *echo.Desk, order echo.Order) ([]echo.Tally, error) {
	order.Every = time.Hour
	if err := desk.Begin(ctx, order); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the guest to ask: %w", ctx.Err())
		case <-time.After(300 * time.Millisecond):
		}
		tallies, err := desk.Tallies(ctx)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(tallies, func(t echo.Tally) bool { return t.Asked == 0 }) {
			return tallies, nil
		}
	}
}

// inquiries are questions that somebody asks over and over.
type inquiries struct {
	questions []question
	stop      func(context.Context) ([]echo.Tally, error)
}

// order is what is asked: what is forbidden, often; what is permitted, with patience.
func (w *policyWorld) order(questions []question, patient time.Duration) echo.Order {
	o := echo.Order{Every: askedEvery}
	for _, q := range questions {
		within := forbiddenWithin
		if w.cluster.Judge(q.flow).Allowed {
			within = patient
		}
		o.Questions = append(o.Questions, echo.Question{Target: q.target, Within: within})
	}
	return o
}

// watch asks everything to the VM and from it until the functions are called. The two nodes between which it moves do not ask: what they may changes as it moves.
func (w *policyWorld) watch(t *testing.T, vm *worldPod, target string) []inquiries {
	t.Helper()
	var all []inquiries
	patient := min(patience(permittedWithin), watchedLongest)
	from := func(namespace string, questions []question) {
		questions = slices.DeleteFunc(questions, func(q question) bool { return q.flow.To.Pod != &vm.Pod })
		o := w.order(questions, patient)
		inquiry := echo.Repeat(t.Context(), traffic.Place{Namespace: namespace}.Dial, o.Questions, o.Every)
		all = append(all, inquiries{questions, func(context.Context) ([]echo.Tally, error) { return inquiry.Stop(), nil }})
	}
	for i := range w.pods {
		if p := &w.pods[i]; p != vm {
			ns, err := cluster.PodNamespace(p.Node, p.ips[0])
			if err != nil {
				t.Fatal(err)
			}
			from(ns, w.ofPod(p))
		}
	}
	for _, node := range w.nodes {
		if node != vm.Node && node != target {
			ns, err := cluster.Namespace(node)
			if err != nil {
				t.Fatal(err)
			}
			from(ns, w.ofNode(node))
		}
	}
	questions := slices.DeleteFunc(w.ofPod(vm), func(q question) bool { return q.flow.To.Pod == &vm.Pod })
	desk, err := vm.desk()
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Begin(t.Context(), w.order(questions, patient)); err != nil {
		t.Fatal(err)
	}
	return append(all, inquiries{questions, func(ctx context.Context) ([]echo.Tally, error) {
		desk, err := vm.desk() // it is elsewhere now
		if err != nil {
			return nil, err
		}
		return desk.End(ctx)
	}})
}

// verdict fails the test for each connection that was established and is forbidden, or is permitted and was not.
func (w *policyWorld) verdict(t *testing.T, all []inquiries) {
	t.Helper()
	var permitted, forbidden int
	var slowest time.Duration
	for _, a := range all {
		tallies, err := a.stop(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, tally := range tallies {
			q := a.questions[i]
			v := w.cluster.Judge(q.flow)
			switch {
			case tally.Asked == 0:
				t.Errorf("%s → %s was never asked", q.from, q.target)
			case v.Allowed && tally.Answered < tally.Asked:
				t.Errorf("%s → %s; it is permitted (%s)", q.from, tally, v.Why)
			case !v.Allowed && tally.Connected > 0:
				t.Errorf("%s → %s; it is forbidden (%s)", q.from, tally, v.Why)
			}
			if v.Allowed {
				permitted, slowest = permitted+tally.Asked, max(slowest, tally.Slowest)
			} else {
				forbidden += tally.Asked
			}
		}
	}
	t.Logf("meanwhile: %d connections that are permitted, the slowest took %s; %d that are forbidden", permitted, slowest.Round(time.Millisecond), forbidden)
}

// moves migrates the VM to another node, asking all along.
func (w *policyWorld) moves(t *testing.T, vm *worldPod) {
	t.Helper()
	to := vm.vm.another(t)
	all := w.watch(t, vm, to)
	time.Sleep(watchedBefore)
	g := vm.vm.migrate(t, lab.MigrateOptions{To: to})
	source := vm.Node
	vm.Node = to
	time.Sleep(watchedPast)
	w.verdict(t, all)
	stop, err := g.QEMU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from %s to %s: QEMU had stopped the VM for %s", source, to, stop.Duration())
}

// The truth table with a VM in it: before it moves, while it moves, and when it has. No connection is established that is forbidden, and none refused that is permitted.
func TestPolicyVMTable(t *testing.T) {
	w := newPolicyWorld(t, "x/a")
	vm := &w.pods[slices.IndexFunc(w.pods, func(p worldPod) bool { return p.vm != nil })]
	w.settle(t)
	casesToPlay(t, fewVMPolicies, func(t *testing.T, c policyCase) {
		w.play(t, c, func() {
			w.moves(t, vm)
			w.settle(t)
		})
	})
	vm.vm.untouched(t)
	w.settle(t)
	consistent(t)
}

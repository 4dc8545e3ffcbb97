package kubectl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
)

// errEnough is the end of a tcpdump that has seen as much as it was to.
var errEnough = errors.New("it has seen enough")

// agentsOf are containers that tell their pod, until their input ends, which they tell too; or they come to the next end that there is for the pod.
type agentsOf struct {
	mu   sync.Mutex
	ends map[string][]error
	runs []string
}

// run implements containers.
func (a *agentsOf) run(ctx context.Context, p program) error {
	pod := p.in.pod.Name
	a.mu.Lock()
	a.runs = append(a.runs, p.in.String()+": "+strings.Join(p.args, " "))
	var end error
	if len(a.ends[pod]) > 0 {
		end, a.ends[pod] = a.ends[pod][0], a.ends[pod][1:]
	}
	a.mu.Unlock()
	if _, err := io.WriteString(p.stderr, "listening\n"); err != nil {
		return err
	}
	if _, err := io.WriteString(p.stdout, "IP "+pod+"\n"); err != nil {
		return err
	}
	switch {
	case errors.Is(end, errEnough):
		return nil
	case end != nil:
		return end
	}
	if _, err := io.Copy(io.Discard, p.stdin); err != nil {
		return err
	}
	_, err := io.WriteString(p.stderr, "counted "+pod+"\n")
	return errors.Join(err, ctx.Err())
}

func (a *agentsOf) ran() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.runs...)
}

// text is what was written up to now. Safe for concurrent use.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *text) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *text) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until all of the words have been written.
func (s *text) await(t *testing.T, words ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, w := range words {
		for ; !strings.Contains(s.String(), w); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("want %q in:\n%s", w, s)
			}
		}
	}
}

func agentPod(node string) *corev1.Pod { return ovnPod("agent-"+node, agentComponent, node) }

// vmPort is a Port of VM web1, on a node.
func vmPort(name, network, node string) *v1alpha1.Port {
	p := &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	p.Spec.Target.Name, p.Spec.Target.Network, p.Status.Node = "web1", network, node
	return p
}

// moveTo is web1's Port, on another node.
func moveTo(t *testing.T, c cluster, node string) *v1alpha1.Port {
	t.Helper()
	var p v1alpha1.Port
	if err := c.api.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "web1"}, &p); err != nil {
		t.Fatal(err)
	}
	p.Status.Node = node
	return &p
}

// looked runs a follower of web1, or of whatever is named.
func looked(ctx context.Context, t *testing.T, c cluster, name string) (out, messages *text, done chan error) {
	t.Helper()
	v, err := c.viewOf(ctx, name, "")
	if err != nil {
		t.Fatal(err)
	}
	out, messages, done = &text{}, &text{}, make(chan error, 1)
	f := newFollower(c, v, []string{"icmp"}, streams{out: out, messages: messages})
	go func() { done <- f.run(ctx) }()
	return out, messages, done
}

// A VM is looked at where it is, on both nodes while it moves, and then on the other.
func TestTcpdumpFollows(t *testing.T) {
	agents := &agentsOf{}
	c := clusterOf(t, agents, vmPort("web1", "default", "node1"), agentPod("node1"), agentPod("node2"))
	ctx, cancel := context.WithCancel(t.Context())
	out, messages, done := looked(ctx, t, c, "web1")
	out.await(t, "node1: IP agent-node1\n")
	messages.await(t, " web1 is on node1\n", "node1: listening\n")
	pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "m"}}
	pm.Spec.VMI.Name, pm.Spec.Source.Node, pm.Spec.Target.Node, pm.Status.Result = "web1", "node1", "node2", v1alpha1.MigrationRunning
	if err := c.api.Create(ctx, pm); err != nil {
		t.Fatal(err)
	}
	out.await(t, "node2: IP agent-node2\n")
	messages.await(t, " web1 moves from node1 to node2: what either sees is shown\n")
	if strings.Contains(messages.String(), "counted") {
		t.Errorf("the source is looked at no more:\n%s", messages)
	}
	pm.Status.Result = v1alpha1.MigrationSucceeded
	moved := moveTo(t, c, "node2")
	if err := errors.Join(c.api.Update(ctx, moved), c.api.Update(ctx, pm)); err != nil {
		t.Fatal(err)
	}
	messages.await(t, " web1 is on node2\n", "node1: counted agent-node1\n")
	if err := c.api.Update(ctx, moveTo(t, c, "")); err != nil {
		t.Fatal(err)
	}
	messages.await(t, " web1 is on no node: waiting until it is\n", "node2: counted agent-node2\n")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	const run = "container agent of pod godwit-system/agent-%s: godwit-agent tcpdump --port vm/shop/web1/default -- icmp"
	if diff := cmp.Diff([]string{fmt.Sprintf(run, "node1"), fmt.Sprintf(run, "node2")}, agents.ran()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What ends a look on a node: tcpdump's end is the command's, with its code; a link that is gone, and an agent that was replaced, are waited for.
func TestTcpdumpEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		ends []error
		runs int
		code int
	}{
		{"it has seen enough", []error{errEnough}, 1, 0},
		{"it does not like the filter", []error{&ExitError{Code: 1}}, 1, 1},
		{"the link is gone and comes again", []error{&ExitError{Code: errand.ExitGone}, &ExitError{Code: 2}}, 2, 2},
		{"the agent is replaced", []error{&ExitError{Code: 137}, errors.New("the connection is lost"), &ExitError{Code: 3}}, 3, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // they wait
			agents := &agentsOf{ends: map[string][]error{"agent-node1": test.ends}}
			out, messages, done := looked(t.Context(), t, clusterOf(t, agents, vmPort("web1", "default", "node1"), agentPod("node1")), "web1")
			out.await(t, "IP agent-node1")
			if err := <-done; ExitCode(err) != test.code || len(agents.ran()) != test.runs {
				t.Errorf("%v after %d runs:\n%s", err, len(agents.ran()), messages)
			}
		})
	}
}

// A pod's lines have no mark; when it has ended, so has the command. A node without an agent is told.
func TestTcpdumpOfAPod(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: corev1.PodSpec{NodeName: "node1"}}
	pod.UID = "00000000-0000-4000-8000-000000000001"
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: podIdentity(t, string(pod.UID))}
	agents := &agentsOf{}
	agent := agentPod("node1")
	agent.Spec.Containers = []corev1.Container{{Name: agentComponent, Args: []string{"--ovs-db=unix:/run/other/db.sock"}}}
	c := clusterOf(t, agents, pod, agent)
	out, messages, done := looked(t.Context(), t, c, "db")
	out.await(t, "IP agent-node1\n")
	if err := c.api.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	messages.await(t, " db is on node1\nlistening\ncounted agent-node1\n")
	if out.String() != "IP agent-node1\n" || !strings.HasSuffix(agents.ran()[0], "--port pod/shop/db/default --ovs-db=unix:/run/other/db.sock -- icmp") {
		t.Errorf("%q, %v", out, agents.ran())
	}
	c = clusterOf(t, agents, vmPort("web1", "default", "node2"))
	_, _, done = looked(t.Context(), t, c, "web1")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no agent of Godwit runs on node node2") {
		t.Errorf("no agent: %v", err)
	}
}

// podIdentity is an annotation of a pod on the pod network and on another.
func podIdentity(t *testing.T, uid string) string {
	t.Helper()
	const identity = `{"podUID":"%s","subnet":"default","ips":["10.244.0.5/16"],"mac":"0a:67:0a:f4:00:05","gateways":["10.244.0.1"],"mtu":1442,` +
		`"nics":[{"interface":"net1","network":"shop/storage","subnet":"storage","ips":["10.9.0.5/24"],"gateways":["10.9.0.1"],"mac":"0a:67:0a:09:00:05","mtu":1442}]}`
	annotation := fmt.Sprintf(identity, uid)
	if _, err := v1alpha1.ParseIdentity(annotation); err != nil {
		t.Fatal(err)
	}
	return annotation
}

func TestViewOf(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
	pod.UID = "00000000-0000-4000-8000-000000000001"
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: podIdentity(t, string(pod.UID))}
	host := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "host"}, Spec: corev1.PodSpec{HostNetwork: true, NodeName: "node1"}}
	other := vmPort("web2", "data", "node1")
	other.Spec.Target.Name = "web2"
	third := other.DeepCopy()
	third.Name, third.Spec.Target.Network = "web2-b", "backup"
	lone := other.DeepCopy()
	lone.Name, lone.Spec.Target.Name = "web3", "web3"
	c := clusterOf(t, nil, []client.Object{pod, host, vmPort("web1", "default", "node1"), vmPort("web1-storage", "storage", "node1"), other, third, lone}...)
	for _, test := range []struct{ name, nic, want string }{
		{"web1", "", "vm/shop/web1/default"}, {"web1", "storage", "vm/shop/web1/storage"}, {"web1", "none", "VM shop/web1 has no interface none: it has default, storage"},
		{"web2", "", "VM shop/web2 has several interfaces: --nic says which: data, backup"}, {"web2", "backup", "vm/shop/web2/backup"}, {"web3", "", "vm/shop/web3/data"},
		{"db", "", "pod/shop/db/default"}, {"db", "eth0", "pod/shop/db/default"}, {"db", "net1", "pod/shop/db/net1"}, {"db", "net2", "pod shop/db has no interface net2: it has eth0, net1"},
		{"host", "", "pod shop/host is on the network of node node1"}, {"nobody", "", "neither a Port of a VM nobody nor a pod"},
	} {
		v, err := c.viewOf(t.Context(), test.name, test.nic)
		got := string(v.port)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, test.want) || got == "" {
			t.Errorf("%s --nic %q: %s, want %s", test.name, test.nic, got, test.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	launcher := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "virt-launcher-web1-x", OwnerReferences: []metav1.OwnerReference{{Kind: v1alpha1.KindVirtualMachineInstance, Name: "web1", Controller: new(bool)}}}}
	*launcher.OwnerReferences[0].Controller = true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
	elsewhere := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "far"}}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "front"}}
	c := clusterOf(t, nil, launcher, pod, elsewhere, service, vmPort("web1", "default", "node1"), node("node1"))
	for _, test := range []struct {
		words completion
		args  []string
		want  []string
	}{
		{vms, nil, []string{"web1"}}, {vms, []string{"web1"}, nil}, {vmsAndPods, nil, []string{"web1", "db"}}, {nodes, nil, []string{"node1"}}, {nodes, []string{"node1"}, nil},
		{traceable, nil, []string{"web1", "db"}}, {traceable, []string{"web1"}, []string{"web1", "db", "service:front"}},
		{traceable, []string{"web1", "db"}, []string{"tcp", "udp", "icmp"}}, {traceable, []string{"web1", "db", "tcp"}, nil},
	} {
		if diff := cmp.Diff(test.want, test.words(t.Context(), c, test.args)); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", test.args, diff)
		}
	}
}

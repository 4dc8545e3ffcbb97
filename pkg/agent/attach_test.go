package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// bench is an attacher on a node in memory, with pods that the test adds.
type bench struct {
	*attacher
	node     *fakeNode
	registry *prometheus.Registry
	pods     *cachetesting.FakeControllerSource
}

func newBench(t *testing.T) *bench {
	t.Helper()
	src := Sources{
		Nodes: cachetesting.NewFakeControllerSource(), Pods: cachetesting.NewFakeControllerSource(), Subnets: cachetesting.NewFakeControllerSource(),
	}
	in, err := newInputs("one", src, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ready := newReadiness()
	close(ready.ready)
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg, func() bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	cfg := Defaults()
	cfg.NodeName, cfg.SBRemote = "one", "tcp:192.0.2.1:6642"
	node := newFakeNode()
	state := &nodeState{db: node, connected: make(chan struct{}), datapath: ovs.DatapathNetdev}
	close(state.connected)
	state.mtu.Store(1442)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { in.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	if !in.synced(ctx) {
		t.Fatal("informers did not sync")
	}
	return &bench{
		attacher: &attacher{
			cfg: cfg, log: slog.New(slog.NewTextHandler(t.Output(), nil)), host: node, inputs: in, ready: ready, node: state, metrics: m,
		},
		registry: reg, node: node, pods: src.Pods.(*cachetesting.FakeControllerSource),
	}
}

const uid = "00000000-0000-4000-8000-000000000007"

func podA(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: uid, Annotations: annotations}}
}

func identified() map[string]string {
	return map[string]string{v1alpha1.IdentityAnnotation: identityOf(uid, 7).Text()}
}

func addRequest() *wire.Request {
	return &wire.Request{
		Version: wire.Version, Command: wire.Add, Conf: "godwit", Network: "default", ContainerID: "c1", Netns: "/proc/self/ns/net", IfName: "eth0",
		Pod: wire.Pod{Namespace: "ns", Name: "a", UID: uid}, TimeoutMillis: 1000,
	}
}

func TestAddWaitsForTheIdentity(t *testing.T) {
	b := newBench(t)
	type outcome struct {
		res *wire.Result
		err error
	}
	got := make(chan outcome, 1)
	go func() {
		res, err := b.handle(t.Context(), addRequest())
		got <- outcome{res, err}
	}()
	b.pods.Add(podA(nil))
	select {
	case o := <-got:
		t.Fatalf("ADD of a pod without an identity ended: %v", o.err)
	case <-time.After(50 * time.Millisecond):
	}
	b.pods.Modify(podA(identified()))
	o := <-got
	if o.err != nil {
		t.Fatal(o.err)
	}
	name := netdev.HostName("c1", "eth0")
	want := ovs.Port{
		Name: name, ID: "pod/ns/a/default", UID: uid, MAC: o.res.Container.MAC,
		Owner: ovs.Owner{Container: "c1", IfName: "eth0", Netns: "/proc/self/ns/net", Pod: "ns/a", Conf: "godwit"},
	}
	if diff := cmp.Diff(want, b.node.ports[name].Port); diff != "" {
		t.Errorf("port (-want +got):\n%s", diff)
	}
	if v := b.node.links[name]; !v.NoOffload || v.MTU != 1400 {
		t.Errorf("veth on the userspace datapath: %+v", v)
	}
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	stages := 0
	for _, f := range families {
		if f.GetName() == "godwit_agent_attach_stage_seconds" {
			stages = len(f.GetMetric())
		}
	}
	if stages != 5 {
		t.Errorf("%d stages were measured, want 5", stages)
	}
}

func TestAddIsUndone(t *testing.T) {
	boom := errors.New("boom")
	for _, stage := range []string{"CreateVeth", "EnsurePort", "ConfigureContainer", "WaitInstalled"} {
		t.Run(stage, func(t *testing.T) {
			b := newBench(t)
			b.pods.Add(podA(identified()))
			b.node.fail[stage] = boom
			if _, err := b.handle(t.Context(), addRequest()); !errors.Is(err, boom) || !strings.Contains(err.Error(), "ns/a") {
				t.Errorf("error %v, want boom, and the pod's name", err)
			}
			if left := b.node.left(); len(left) > 0 {
				t.Errorf("left on the node: %v", left)
			}
			delete(b.node.fail, stage)
			if _, err := b.handle(t.Context(), addRequest()); err != nil {
				t.Errorf("the runtime's next attempt: %v", err)
			}
		})
	}
	t.Run("the caller goes away", func(t *testing.T) {
		b := newBench(t)
		b.pods.Add(podA(identified()))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b.node.bind = func(p *ovs.PortStatus) { p.Installed = false; cancel() }
		if _, err := b.handle(ctx, addRequest()); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want Canceled", err)
		}
		if left := b.node.left(); len(left) > 0 {
			t.Errorf("left on the node: %v", left)
		}
	})
}

// A migration's target has the VM's address in its own kernel until KubeVirt takes it away: it may say nothing before OVN has blocked it.
func TestTargetIsConfiguredWhenItIsBlocked(t *testing.T) {
	b := newBench(t)
	b.pods.Add(targetPod())
	if _, err := b.handle(t.Context(), addRequest()); err != nil {
		t.Fatal(err)
	}
	calls := slices.DeleteFunc(slices.Clone(b.node.calls), func(c string) bool {
		return !slices.Contains([]string{"WaitInstalled", "WaitBlocked", "ConfigureContainer"}, c)
	})
	if want := []string{"WaitInstalled", "WaitBlocked", "ConfigureContainer"}; !slices.Equal(calls, want) {
		t.Errorf("done in the order %v, want %v", calls, want)
	}
}

// TestAddSaysWhatIsMissing checks the words: each names what was missing, on which object, and who should have provided it.
func TestAddSaysWhatIsMissing(t *testing.T) {
	other := identityOf("00000000-0000-4000-8000-000000000008", 8)
	big := identityOf(uid, 7)
	big.MTU = 9000
	for _, c := range []struct {
		name    string
		prepare func(*bench)
		request func(*wire.Request)
		want    []string
	}{
		{"no pod", func(*bench) {}, nil, []string{"pod ns/a: the API server has not shown it", "for the identity"}},
		{"no annotation", func(b *bench) { b.pods.Add(podA(nil)) }, nil, []string{"pod ns/a: no annotation godwit.dev/identity", "is godwit-controller running", "for the identity"}},
		{"broken annotation", func(b *bench) { b.pods.Add(podA(map[string]string{v1alpha1.IdentityAnnotation: "{"})) }, nil, []string{"pod ns/a: annotation godwit.dev/identity: unexpected end"}},
		{
			"identity of another pod", func(b *bench) { b.pods.Add(podA(map[string]string{v1alpha1.IdentityAnnotation: other.Text()})) }, nil,
			[]string{"is for UID " + other.PodUID + ", the pod has UID " + uid},
		},
		{
			"pod of another UID", func(b *bench) { b.pods.Add(podA(identified())) }, func(r *wire.Request) { r.Pod.UID = "0" },
			[]string{"the runtime starts the pod with UID 0, but the API server has UID " + uid},
		},
		{
			"too large", func(b *bench) { b.pods.Add(podA(map[string]string{v1alpha1.IdentityAnnotation: big.Text()})) }, nil,
			[]string{"its MTU 9000 is over this node's 1442", "spec.mtu of Subnet pods"},
		},
		{
			"OVN does not bind", func(b *bench) {
				b.pods.Add(podA(identified()))
				b.node.bind = func(p *ovs.PortStatus) { p.Installed = false }
			}, nil,
			[]string{"for OVN: ", "OVN did not bind port pod/ns/a/default here", "requested-chassis=one and iface-id-ver=" + uid, "tcp:192.0.2.1:6642"},
		},
		{
			"the switch is down", func(b *bench) {
				b.pods.Add(podA(identified()))
				b.node.bind = func(p *ovs.PortStatus) { p.Installed, p.Ofport = false, 0 }
			}, nil,
			[]string{"ovs-vswitchd has not taken the port up: is it running?"},
		},
		{
			"OVN does not block", func(b *bench) {
				b.pods.Add(targetPod())
				b.node.open = true
			}, nil,
			[]string{"OVN did not block port vm/ns/vm/default here, which migration m-uid needs", "activation-strategy=rarp", "context deadline exceeded"},
		},
		{
			"node not ready", func(b *bench) { b.ready.set(compGateway, "no annotation godwit.dev/join") }, nil,
			[]string{"node is not ready for pods: gateway ovn0: no annotation godwit.dev/join", "for the node: "},
		},
		{"no namespace", func(*bench) {}, func(r *wire.Request) { r.Netns = "/run/netns/none" }, []string{"not a network namespace: /run/netns/none"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.prepare(b)
			req := addRequest()
			if c.request != nil {
				c.request(req)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := b.handle(ctx, req)
			if err == nil {
				t.Fatal("ADD succeeded")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if left := b.node.left(); len(left) > 0 {
				t.Errorf("left on the node: %v", left)
			}
		})
	}
}

func TestAddEndsWhenThePodIsDeleted(t *testing.T) {
	b := newBench(t)
	b.pods.Add(podA(nil))
	result := make(chan error, 1)
	go func() {
		_, err := b.handle(t.Context(), addRequest())
		result <- err
	}()
	time.Sleep(50 * time.Millisecond)
	b.pods.Delete(podA(nil))
	select {
	case err := <-result:
		if err == nil || !strings.Contains(err.Error(), "was deleted while it was being attached") {
			t.Errorf("error %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("ADD goes on waiting for a pod that is gone")
	}
}

func TestStaticPod(t *testing.T) {
	b := newBench(t)
	pod := podA(identified())
	pod.Annotations[corev1.MirrorPodAnnotationKey] = "5ca1ab1e"
	b.pods.Add(pod)
	req := addRequest()
	req.Pod.UID = "5ca1ab1e" // what the kubelet knows a static pod by
	if _, err := b.handle(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if got := b.node.ports[netdev.HostName("c1", "eth0")].UID; got != uid {
		t.Errorf("iface-id-ver is %s, want the API's UID %s", got, uid)
	}
}

func TestRuntimeWithoutUID(t *testing.T) {
	b := newBench(t)
	b.pods.Add(podA(identified()))
	req := addRequest()
	req.Pod.UID = ""
	if _, err := b.handle(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestOperationsOnOneContainerAreSerialized(t *testing.T) {
	b := newBench(t)
	b.pods.Add(podA(identified()))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			req := addRequest()
			if i%2 == 1 {
				req.Command = wire.Del
			}
			if _, err := b.handle(t.Context(), req); err != nil {
				t.Errorf("%s: %v", req.Command, err)
			}
		})
	}
	wg.Wait()
	if len(b.locks.locks) != 0 {
		t.Errorf("%d locks are left", len(b.locks.locks))
	}
	req := addRequest()
	req.Command = wire.Del
	if _, err := b.handle(t.Context(), req); err != nil {
		t.Error(err)
	}
	if left := b.node.left(); len(left) > 0 {
		t.Errorf("left on the node: %v", left)
	}
}

func TestDelFailsWhenTheSwitchDoes(t *testing.T) {
	b := newBench(t)
	b.pods.Add(podA(identified()))
	if _, err := b.handle(t.Context(), addRequest()); err != nil {
		t.Fatal(err)
	}
	del := addRequest()
	del.Command = wire.Del
	b.node.fail["DeletePorts"] = ovs.ErrUnreachable
	if _, err := b.handle(t.Context(), del); !errors.Is(err, ovs.ErrUnreachable) {
		t.Errorf("DEL: %v, want ErrUnreachable so that the runtime tries again", err)
	}
	delete(b.node.fail, "DeletePorts")
	if _, err := b.handle(t.Context(), del); err != nil || len(b.node.left()) > 0 {
		t.Errorf("DEL again: %v, left %v", err, b.node.left())
	}
}

func TestCheckNoticesDifferences(t *testing.T) {
	name := netdev.HostName("c1", "eth0")
	for _, c := range []struct {
		what   string
		change func(*bench, *wire.Request)
		want   string
	}{
		{"nothing", func(*bench, *wire.Request) {}, ""},
		{"no link", func(b *bench, _ *wire.Request) { delete(b.node.links, name) }, "has no link " + name},
		{"not bound", func(b *bench, _ *wire.Request) { s := b.node.ports[name]; s.Installed = false; b.node.ports[name] = s }, "OVN has not bound"},
		{"another OVN port", func(b *bench, _ *wire.Request) { s := b.node.ports[name]; s.ID = "x"; b.node.ports[name] = s }, `has the OVN port (iface-id) "x", want "pod/ns/a/default"`},
		{"another namespace", func(b *bench, _ *wire.Request) {
			s := b.node.ports[name]
			s.Owner.Netns = "/run/netns/x"
			b.node.ports[name] = s
		}, `has the network namespace "/run/netns/x", want "/proc/self/ns/net"`},
		{"switch reports an error", func(b *bench, _ *wire.Request) {
			s := b.node.ports[name]
			s.Error = "no device"
			b.node.ports[name] = s
		}, "no device"},
		{"container differs", func(b *bench, _ *wire.Request) { b.node.fail["CheckContainer"] = errors.New("lacks address") }, "lacks address"},
		{"previous result differs", func(_ *bench, r *wire.Request) { r.Previous = &wire.Result{MTU: 9000} }, "prevResult has MTU 9000, want 1400"},
		{"no port", func(b *bench, _ *wire.Request) { delete(b.node.ports, name) }, "no attachment eth0"},
	} {
		t.Run(c.what, func(t *testing.T) {
			b := newBench(t)
			b.pods.Add(podA(identified()))
			if _, err := b.handle(t.Context(), addRequest()); err != nil {
				t.Fatal(err)
			}
			req := addRequest()
			req.Command = wire.Check
			c.change(b, req)
			_, err := b.handle(t.Context(), req)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("CHECK: %v, want %q", err, c.want)
			}
		})
	}
}

func TestRemoveStale(t *testing.T) {
	b := newBench(t)
	for i, c := range []struct {
		netns string
		link  bool
	}{{"/run/netns/gone", false}, {"/run/netns/hidden", true}, {"/proc/self/ns/net", false}} {
		p := ovs.Port{Name: fmt.Sprintf("gw%d", i), Owner: ovs.Owner{Container: fmt.Sprintf("c%d", i), IfName: "eth0", Netns: c.netns}}
		b.node.ports[p.Name] = ovs.PortStatus{Port: p}
		if c.link {
			b.node.links[p.Name] = netdev.Veth{}
		}
	}
	if err := b.removeStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"link gw1", "port gw1", "port gw2"}, b.node.left()); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	req := &wire.Request{Version: wire.Version, Command: wire.Status, TimeoutMillis: 1}
	if _, err := b.handle(t.Context(), req); err != nil {
		t.Errorf("STATUS of a node that is ready: %v", err)
	}
	var e *types.Error
	b.node.fail["Ping"] = ovs.ErrUnreachable
	if _, err := b.handle(t.Context(), req); !errors.As(err, &e) || e.Code != wire.CodeUnavailable || !strings.Contains(e.Details, "not reachable") {
		t.Errorf("STATUS without Open vSwitch: %v", err)
	}
	b.ready.set(compGateway, "gone")
	if _, err := b.handle(t.Context(), req); !errors.As(err, &e) || e.Code != wire.CodeUnavailable || !strings.Contains(e.Details, "gateway ovn0: gone") {
		t.Errorf("STATUS without gateway: %v", err)
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// Somebody else's route to a Subnet's range keeps new pods of that Subnet away, and nothing else: the node is ready, so that it keeps its egress addresses. That the route is gone is seen without an event.
func TestRouteInTheWay(t *testing.T) {
	b, node, nodes, subnets := newBench(t), newFakeNode(), cachetesting.NewFakeControllerSource(), cachetesting.NewFakeControllerSource()
	nodes.Add(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(1).Text(), v1alpha1.MTUAnnotation: "1442"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
	})
	for i, cidr := range []string{"10.50.0.0/16", "10.244.0.0/16"} {
		subnets.Add(&v1alpha1.Subnet{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("subnet", i)}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{cidr}},
			Status: v1alpha1.SubnetStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}},
		})
	}
	in, err := newInputs("one", Sources{Nodes: nodes, Pods: cachetesting.NewFakeControllerSource(), Subnets: subnets}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	node.addrs = []netdev.HostAddr{{Link: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24"), MTU: 1500}}
	node.blocked = []netdev.Blocked{{Dst: netip.MustParsePrefix("10.50.0.0/16"), By: "10.50.0.0/16 via 192.0.2.254 dev eth0 proto static"}}
	b.attacher.node.db = node
	l := &nodeLoop{
		log: b.log, inputs: in, ready: newReadiness(compChassis, compGateway, compInstall), state: b.attacher.node, wake: make(chan struct{}), installInterval: 10 * time.Millisecond,
		chassis: &chassis{cfg: b.cfg, host: node, annotate: func(context.Context, string, string) error { return nil }},
		gateway: &gateway{cfg: b.cfg, host: node}, installer: newInstaller(t),
	}
	ctx, stop := context.WithCancel(t.Context())
	listed, done := make(chan struct{}), make(chan error)
	go func() { in.run(ctx); close(listed) }()
	if !in.synced(ctx) {
		t.Fatal("informers did not sync")
	}
	go func() { done <- l.run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-listed
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "a node that is ready", func() error { return l.ready.err() })
	in50, in244 := []netip.Prefix{netip.MustParsePrefix("10.50.0.7/16")}, []netip.Prefix{netip.MustParsePrefix("10.244.0.7/16")}
	err = l.state.reaches(in50)
	for _, want := range []string{"no route to pods in 10.50.0.0/16", "via 192.0.2.254 dev eth0 proto static", "ip route delete", "kubectl get subnets"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err := l.state.reaches(in244); err != nil {
		t.Errorf("a pod of another Subnet: %v", err)
	}
	node.mu.Lock()
	got := routed(node)
	node.blocked = nil
	node.mu.Unlock()
	if !slices.Equal(got, []string{"10.244.0.0/16"}) {
		t.Errorf("routes are %v while one is in the way", got)
	}
	eventually(t, "the route after the other is gone", func() error {
		node.mu.Lock()
		got := routed(node)
		node.mu.Unlock()
		if len(got) != 2 {
			return fmt.Errorf("routes are %v", got)
		}
		return errors.Join(l.state.reaches(in50), l.ready.err())
	})
}

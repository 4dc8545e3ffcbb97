package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// oldSource is a source port that two pods use, one after the other: connection tracking still knows what the first one sent from it.
const oldSource = 4000

// oneAddress makes a Subnet for the namespaces with label subnet=NAME, of which one address is left.
func oneAddress(t *testing.T, name, ns string) {
	t.Helper()
	cidr := "10.79.0.0/30"
	if cluster.IPFamily() == lab.IPv6 {
		cidr = "fd00:79::/126"
	}
	s := &v1alpha1.Subnet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.SubnetSpec{CIDRs: []string{cidr}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"subnet": name}}},
	}
	if err := cluster.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.api.Delete(context.WithoutCancel(t.Context()), s) })
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil || s.Status.AvailableIPs == 0 {
			return fmt.Errorf("Subnet %s: %+v %w", name, s.Status, err)
		}
		return nil
	})
	taken := int(s.Status.AvailableIPs) - 1
	for i := range taken {
		create(t, server(ns, fmt.Sprint("taken-", i), "node1"))
	}
	if taken > 0 {
		ready(t, ns, taken)
	}
}

// asksFrom asks from a pod's network namespace, over UDP from the old port.
func asksFrom(ctx context.Context, t *testing.T, p reach.Pod, to []netip.Addr) *echo.Inquiry {
	t.Helper()
	place := podPlace(t, p)
	dial := func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		var d net.Dialer
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: oldSource}
		}
		err = netns.Do(place.Namespace, func() error { conn, err = d.DialContext(ctx, network, addr); return err })
		return conn, err
	}
	ip := sameFamily(to, p.IPs[0])
	questions := []echo.Question{{Target: target("tcp", ip, 7), Within: time.Second}, {Target: target("udp", ip, 7), Within: time.Second}}
	return echo.Repeat(ctx, dial, questions, 100*time.Millisecond)
}

// A pod that gets the address of one that was permitted, within a second, is as forbidden as any other, from its first packet; also what connection tracking takes for its
// predecessor's.
func TestPolicyAddressReused(t *testing.T) {
	ns := namespace(t, map[string]string{"subnet": "reused"})
	oneAddress(t, "reused", ns)
	guarded := namespace(t, nil)
	create(t, server(guarded, "guarded", "node2"))
	to := ready(t, guarded, 1)["guarded"].IPs
	np := ingressPolicy(guarded, labelled(), from(nil, npeer{NamespaceSelector: labelled("subnet", "reused"), PodSelector: labelled("app", "friend")}))
	if err := cluster.api.Create(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	for i, node := range []string{"node1", "node3", "node2"} {
		friend := comes(t, server(ns, "friend", "node1"))
		eventually(t, settleTimeout, func(ctx context.Context) error {
			inquiry := asksFrom(ctx, t, friend, to)
			time.Sleep(busy(300 * time.Millisecond)) // what is being asked then is waited for
			for _, tally := range inquiry.Stop() {
				if tally.Answered == 0 {
					return fmt.Errorf("the pod that is permitted: %s", tally)
				}
			}
			return nil
		})
		left := time.Now()
		goes(t, ns, "friend")
		stranger := comes(t, server(ns, fmt.Sprint("stranger-", i), node))
		came := time.Since(left)
		inquiry := asksFrom(t.Context(), t, stranger, to)
		if stranger.IPs[0] != friend.IPs[0] {
			t.Fatalf("the stranger has %v, want the friend's %v: the test shows nothing", stranger.IPs, friend.IPs)
		}
		time.Sleep(3 * time.Second)
		for _, tally := range inquiry.Stop() {
			if tally.Connected > 0 || tally.Asked == 0 {
				t.Errorf("round %d: %s; it is forbidden to who has the address now", i, tally)
			}
		}
		t.Logf("round %d: %s after its deletion the first pod's address was another's", i, came.Round(100*time.Millisecond))
		goes(t, ns, stranger.Name)
	}
	consistent(t)
}

// comes makes a pod, and returns it as soon as it has an address and runs.
func comes(t *testing.T, p *corev1.Pod) (e reach.Pod) {
	t.Helper()
	second := int64(1) // with none, it would be gone from the API while it still runs, and the address would be two pods'
	p.Spec.TerminationGracePeriodSeconds = &second
	create(t, p)
	until(t, &corev1.PodList{}, p.Namespace, func(q *corev1.Pod) bool {
		if q.Name == p.Name && q.Status.Phase == corev1.PodRunning && len(q.Status.PodIPs) > 0 {
			e = end(q)
		}
		return e.Name != ""
	})
	return e
}

// goes deletes a pod, and does not wait.
func goes(t *testing.T, ns, name string) {
	t.Helper()
	if err := cluster.api.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}); err != nil {
		t.Fatal(err)
	}
}

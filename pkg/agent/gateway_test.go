package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// A range that an address of the node is in takes no new pods, with what to do about it; pods of other Subnets do not suffer.
func TestUnroutableSubnet(t *testing.T) {
	n := newFakeNode()
	leftover := netdev.HostAddr{Link: "cni0", Addr: netip.MustParsePrefix("10.245.1.1/24"), MTU: 1500}
	n.addrs = []netdev.HostAddr{{Link: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24"), MTU: 1500}, leftover}
	g, state := &gateway{cfg: Config{NodeName: "one"}, host: n}, &nodeState{}
	in := gatewayInput{
		node:     &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(1).Text()}}},
		podCIDRs: sortedPrefixes([]string{"10.244.0.0/16", "10.245.0.0/16"}), mtu: 1442, datapath: ovs.DatapathNetdev,
	}
	left, err := g.reconcile(t.Context(), n, in)
	if err != nil || !state.setUnrouted(left) || state.setUnrouted(left) {
		t.Errorf("%v, %v: want news, once", left, err)
	}
	err = state.reaches([]netip.Prefix{netip.MustParsePrefix("10.245.0.7/16")})
	for _, want := range []string{"no route to pods in 10.245.0.0/16", "link cni0 has 10.245.1.1/24", "ip link delete", "kubectl get subnets"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err := state.reaches([]netip.Prefix{netip.MustParsePrefix("10.244.0.7/16")}); err != nil {
		t.Errorf("a pod of another Subnet: %v", err)
	}
	if diff := cmp.Diff([]string{"10.244.0.0/16"}, routed(n)); diff != "" {
		t.Errorf("routes while one range is taken (-want +got):\n%s", diff)
	}
	n.addrs = n.addrs[:1]
	left, err = g.reconcile(t.Context(), n, in)
	if err != nil || !state.setUnrouted(left) || state.reaches([]netip.Prefix{netip.MustParsePrefix("10.245.0.7/16")}) != nil {
		t.Errorf("after the link is gone: %v, %v", left, err)
	}
	if diff := cmp.Diff([]string{"10.244.0.0/16", "10.245.0.0/16"}, routed(n)); diff != "" {
		t.Errorf("routes after the link is gone (-want +got):\n%s", diff)
	}
}

// What pods send to the network between router and nodes is not masqueraded: the Node's annotation says which that is, and no setting of the agent.
func TestJoinNetworkIsNotMasqueraded(t *testing.T) {
	n := newFakeNode()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(1).Text()}}}
	in := gatewayInput{node: node, podCIDRs: sortedPrefixes([]string{"10.244.0.0/16", "no range", "10.244.0.0/16"}), mtu: 1442, datapath: ovs.DatapathNetdev}
	if _, err := (&gateway{cfg: Config{NodeName: "one"}, host: n}).reconcile(t.Context(), n, in); err != nil {
		t.Fatal(err)
	}
	got := []string{fmt.Sprint(n.masquerade.Sources), fmt.Sprint(n.masquerade.Except)}
	if diff := cmp.Diff([]string{"[10.244.0.0/16]", "[100.64.0.0/16 fd64::/64]"}, got); diff != "" {
		t.Errorf("masqueraded, and what is not (-want +got):\n%s", diff)
	}
}

// Connections under a former egress address are ended once, when the rules give another, and tried again if that fails.
func TestTranslationsAreEnded(t *testing.T) {
	n := newFakeNode()
	g := &gateway{cfg: Config{NodeName: "one"}, host: n}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{v1alpha1.JoinAnnotation: joinOf(1).Text()}}}
	pass := func(to string) error {
		in := gatewayInput{node: node, podCIDRs: sortedPrefixes([]string{"10.244.0.0/16"}), mtu: 1442, datapath: ovs.DatapathNetdev}
		if to != "" {
			in.translations = []netdev.Translation{{Source: in.podCIDRs[0], To: netip.MustParseAddr(to)}}
		}
		_, err := g.reconcile(t.Context(), n, in)
		return errors.Join(err, g.endTranslated())
	}
	n.fail["Masquerade"] = errors.New("nft is not there")
	if pass("192.0.2.77") == nil || len(n.ended) > 0 {
		t.Errorf("before the rules are written: ended %v", n.ended)
	}
	delete(n.fail, "Masquerade")
	for _, to := range []string{"", "192.0.2.77", "192.0.2.77"} {
		if err := pass(to); err != nil {
			t.Fatal(err)
		}
	}
	n.fail["EndTranslated"] = errors.New("the table is busy")
	if pass("192.0.2.78") == nil || !g.translates(netip.MustParseAddr("192.0.2.78")) {
		t.Error("that connections could not be ended is not said, or keeps the rules from being used")
	}
	delete(n.fail, "EndTranslated")
	g.forgetMasquerade() // as when somebody has flushed nftables
	for range 2 {
		if err := pass("192.0.2.78"); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"[] [{10.244.0.0/16 192.0.2.77}]", "[{10.244.0.0/16 192.0.2.77}] [{10.244.0.0/16 192.0.2.78}]"}, n.ended); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}

func routed(n *fakeNode) (out []string) {
	for _, r := range n.routes {
		out = append(out, r.Dst.String())
	}
	return out
}

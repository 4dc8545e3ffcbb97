package controller

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestChooseGateway(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	good := func(node string) candidate { return candidate{node, rankGood, at(9.5), at(8.5)} }
	poor := func(node string) candidate { return candidate{node, rankPoor, at(9.5), at(8.5)} }
	silent := func(node string, since float64) candidate {
		return candidate{node, rankSilent, at(since), at(since - 1)}
	}
	for name, c := range map[string]struct {
		active string
		all    []candidate
		want   choice
	}{
		"nobody":                                   {"", nil, choice{reason: reasonNoGateway}},
		"nobody is selected any more":              {"a", nil, choice{reason: reasonNoGateway}},
		"nobody was heard":                         {"", []candidate{silent("a", 0)}, choice{reason: reasonNoGateway}},
		"it stays":                                 {"a", []candidate{good("a"), good("b")}, choice{node: "a", reason: reasonGateway}},
		"it stays whatever the order":              {"b", []candidate{good("a"), good("b")}, choice{node: "b", reason: reasonGateway}},
		"it has failed":                            {"a", []candidate{silent("a", 6), good("b")}, choice{node: "b", reason: reasonGateway}},
		"it was deleted":                           {"a", []candidate{good("b")}, choice{node: "b", reason: reasonGateway}},
		"it is drained":                            {"a", []candidate{poor("a"), good("b")}, choice{node: "b", reason: reasonGateway}},
		"it is drained, and so are all":            {"a", []candidate{poor("a"), poor("b")}, choice{node: "a", reason: reasonGateway}},
		"it is drained, and the other has failed":  {"a", []candidate{poor("a"), silent("b", 6)}, choice{node: "a", reason: reasonGateway}},
		"it has failed, and the other is drained":  {"a", []candidate{silent("a", 6), poor("b")}, choice{node: "b", reason: reasonGateway}},
		"all are silent":                           {"a", []candidate{silent("a", 6), silent("b", 6.5)}, choice{node: "a", reason: reasonGatewaySilent}},
		"nobody was heard of, the other just now":  {"a", []candidate{silent("a", 2), {"b", rankGood, at(10), at(2.5)}}, choice{node: "b", reason: reasonGateway}},
		"all were silent, the other is first back": {"a", []candidate{silent("a", 2.5), {"b", rankGood, at(10), at(2)}}, choice{node: "a", reason: reasonGatewaySilent, again: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := chooseGateway("s", c.active, c.all); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	spread := map[string]bool{}
	for _, subnet := range []string{"s", "t", "u", "v", "w", "x"} {
		spread[chooseGateway(subnet, "", []candidate{good("a"), good("b")}).node] = true
	}
	if len(spread) != 2 {
		t.Errorf("six Subnets have their gateways on %v, want both nodes", spread)
	}
}

// Addresses that nobody can answer to are refused.
func TestUnusable(t *testing.T) {
	for address, bad := range map[string]bool{
		"192.0.2.7": false, "2001:db8::7": false, "10.0.0.7": false, "fd00::7": false,
		"127.0.0.7": true, "::1": true, "169.254.0.7": true, "fe80::7": true, "224.0.0.7": true, "ff02::7": true, "255.255.255.255": true, "0.0.0.0": true, "::": true,
	} {
		s := &v1alpha1.Subnet{Spec: v1alpha1.SubnetSpec{Egress: &v1alpha1.Egress{Addresses: []string{address}}}}
		if got := unusable(s); (got != "") != bad {
			t.Errorf("%s: %q, want it refused: %v", address, got, bad)
		}
	}
}

func TestBeats(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBeats(func() time.Time { return now })
	lease := func(node string, renewed int64, patience int32) *coordinationv1.Lease {
		at := metav1.NewMicroTime(time.Unix(renewed, 0))
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.EgressLease(node)}, Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &patience},
		}
	}
	hear := func(l *coordinationv1.Lease, want bool) {
		t.Helper()
		if _, revived := b.hear(l); revived != want {
			t.Errorf("Lease %s, renewed at %s: revived is %v, want %v", l.Name, l.Spec.RenewTime, revived, want)
		}
	}
	left := func(node string, want time.Duration) {
		t.Helper()
		if got := b.of(node).left(now); got != want {
			t.Errorf("node %s has %s left, want %s", node, got, want)
		}
	}
	left("n", 0)
	hear(lease("n", 5, 3), true) // its clock is another
	left("n", 3*time.Second)
	now = now.Add(2 * time.Second)
	hear(lease("n", 5, 3), false) // told again
	left("n", time.Second)
	hear(lease("n", 6, 3), false)
	left("n", 3*time.Second)
	now = now.Add(3 * time.Second)
	left("n", 0)
	hear(lease("n", 7, 15), true)
	left("n", 15*time.Second)
	hear(lease("n", 8, 3600), false)
	left("n", v1alpha1.EgressRestart)
	if _, revived := b.hear(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "godwit-controller"}}); revived {
		t.Error("another Lease was taken for a node's")
	}
}

// Nobody gets a Subnet's addresses while another has them by its own word: until it says otherwise or falls silent, and no longer than an agent may be away.
func TestAddressesAreHeld(t *testing.T) {
	now := time.Unix(1000, 0)
	clock := func() time.Time { return now }
	r := &egressReconciler{beats: newBeats(clock), state: newEgressState(), now: clock}
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: v1alpha1.SubnetSpec{Egress: &v1alpha1.Egress{Addresses: []string{"192.0.2.77", "2001:db8::77"}}}}
	says := func(node, addresses string, patience int32) {
		at := metav1.NewMicroTime(now)
		r.beats.hear(&coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.EgressLease(node), Annotations: map[string]string{v1alpha1.EgressAddressesAnnotation: addresses}},
			Spec:       coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &patience},
		})
	}
	want := func(active, next, holder string, left time.Duration) {
		t.Helper()
		if by, got := r.held(s, active, next); by != holder || got != left {
			t.Errorf("from %q to %q: held by %q for %s, want %q, %s", active, next, by, got, holder, left)
		}
	}
	says("a", "2001:db8::77", 15) // it is away for a moment
	says("b", "192.0.2.9", 3)
	want("a", "b", "a", 15*time.Second)
	want("a", "a", "", 0)
	want("a", "", "", 0)  // nobody is selected
	want("b", "b", "", 0) // that which is the gateway stays it, whatever others say
	now = now.Add(10 * time.Second)
	want("", "b", "a", 5*time.Second)
	now = now.Add(5 * time.Second)
	want("", "b", "", 0)
	says("a", "192.0.2.77", 3)
	want("a", "b", "a", 3*time.Second)
	says("a", "", 3)
	now = now.Add(time.Second)
	says("a", "", 3)
	want("", "b", "", 0)
	for range 15 { // it does not hear that it shall give them up
		now = now.Add(time.Second)
		says("a", "192.0.2.77", 3)
		if by, _ := r.held(s, "a", "b"); by != "a" {
			t.Fatalf("held by %q", by)
		}
	}
	now = now.Add(time.Second)
	says("a", "192.0.2.77", 3)
	want("", "b", "", 0)
	want("b", "b", "", 0)
	want("b", "c", "a", 3*time.Second)
}

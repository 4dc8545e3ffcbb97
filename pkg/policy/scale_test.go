package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// crowd is an index with policies in 100 namespaces, which select and name peers by label, and pods.
func crowd(policies, pods int) *Index {
	x := New(Config{Join: join})
	for n := range 100 {
		x.SetNamespace(fmt.Sprintf("ns%d", n), map[string]string{"team": fmt.Sprint(n % 10)})
	}
	for i := range policies {
		app, port := map[string]string{"app": fmt.Sprint(i / 100 % 20)}, intstr.FromInt32(int32(1000+i))
		from := []networkingv1.NetworkPolicyPeer{
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint((i/100 + 1) % 20)}}},
			{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(i % 10)}}, PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i / 100 % 20)}}},
		}
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", i%100), Name: fmt.Sprintf("p%d", i)}}
		np.Spec = networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: app},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: from, Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: from[:1]}},
		}
		x.SetPolicy(np)
	}
	for i := range pods {
		x.SetPod(crowdPod(i, i/100%20))
	}
	x.Take()
	return x
}

func crowdPod(i, app int) Pod {
	four, six := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}, [16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
	return Pod{
		Port: ident.PodPort("ns", fmt.Sprint(i), ident.DefaultNetwork), Namespace: fmt.Sprintf("ns%d", i%100), Labels: map[string]string{"app": fmt.Sprint(app), "i": fmt.Sprint(i)},
		IPs: []netip.Addr{netip.AddrFrom4(four), netip.AddrFrom16(six)},
	}
}

// A pod that comes, changes its labels and goes changes as many rows among ten thousand pods as among a hundred, no ACL, and each of them at most once.
func TestPolicyPodEventIsConstant(t *testing.T) {
	type counts struct{ come, relabelled, gone int }
	got := map[int]counts{}
	for _, pods := range []int{100, 10000} {
		x := crowd(1000, pods)
		newcomer := 1 << 20
		count := func(what string) int {
			c := x.Take()
			if len(c.ACLs) != 0 {
				t.Errorf("%d pods: a pod that %s changes ACLs: %+v", pods, what, c.ACLs)
			}
			for _, g := range c.Groups {
				if g.Create != nil || g.Delete || len(g.Add)+len(g.Remove) != 1 {
					t.Errorf("%d pods: a pod that %s changes %+v", pods, what, g)
				}
			}
			for _, s := range c.Sets {
				if s.Create != nil || s.Delete || len(s.Add)+len(s.Remove) != 1 {
					t.Errorf("%d pods: a pod that %s changes %+v", pods, what, s)
				}
			}
			return len(c.Groups) + len(c.Sets)
		}
		var c counts
		x.SetPod(crowdPod(newcomer, 3))
		c.come = count("comes")
		x.SetPod(crowdPod(newcomer, 3))
		if n := count("changes nothing"); n != 0 {
			t.Errorf("%d pods: %d rows change with nothing", pods, n)
		}
		x.SetPod(crowdPod(newcomer, 4))
		c.relabelled = count("is relabelled")
		x.DeletePod(crowdPod(newcomer, 4).Port)
		c.gone = count("goes")
		got[pods] = c
	}
	if got[100] != got[10000] || got[100].come == 0 || got[100].relabelled == 0 || got[100].gone == 0 {
		t.Errorf("rows that change: %+v", got)
	}
	t.Logf("rows that change for one pod: %+v", got)
}

// What a pod that has gone had is nobody's: not even in the same Take may a successor with its address get it.
func TestPolicyAddressReused(t *testing.T) {
	x := New(Config{})
	x.SetNamespace("a", nil)
	x.SetPolicy(policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: good}}}]}]}"))
	old := Pod{Port: "old", Namespace: "a", Labels: map[string]string{"app": "good"}, IPs: addrs("10.0.0.9")}
	next := Pod{Port: "new", Namespace: "a", Labels: map[string]string{"app": "bad"}, IPs: addrs("10.0.0.9")}
	permitted := func() string {
		for _, s := range x.Rows().Sets {
			if len(s.Addresses) > 0 {
				return list(s.Addresses)
			}
		}
		return "nobody"
	}
	x.SetPod(old)
	if got := permitted(); got != "10.0.0.9" {
		t.Fatalf("permitted: %s", got)
	}
	x.DeletePod("old")
	x.SetPod(next)
	if got := permitted(); got != "nobody" {
		t.Errorf("the successor is permitted: %s", got)
	}
	// The other way round the address is both pods' for a moment; when the first goes, the other's right stays.
	next.Labels = old.Labels
	x.SetPod(old)
	x.SetPod(next)
	x.DeletePod("old")
	if got := permitted(); got != "10.0.0.9" {
		t.Errorf("permitted after the first of two with one address has gone: %s", got)
	}
}

// A policy with very many peers has few ACLs with short matches.
func TestPolicyThousandPeers(t *testing.T) {
	np := policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: 443}, {protocol: UDP, port: 1, endPort: 9}]}]}")
	for i := range 1000 {
		np.Spec.Ingress[0].From = append(np.Spec.Ingress[0].From,
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)}})
		if i < maxPeers {
			np.Spec.Ingress[0].From = append(np.Spec.Ingress[0].From,
				networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i)}}})
		}
	}
	rows := Compile(Config{}, Snapshot{Policies: []*networkingv1.NetworkPolicy{np}})
	if n := len(rows.ACLs) - len(baseACLs()); n != 6 { // pods in two families and blocks in one, two protocols
		t.Errorf("%d ACLs, want 6", n)
	}
	for _, a := range rows.ACLs {
		if len(a.Row.Match) > 200 {
			t.Errorf("a match of %d bytes: %s", len(a.Row.Match), a.Row.Match)
		}
	}
}

// Exceptions that would be very many prefixes permit nothing.
func TestPolicyTooManyBlocks(t *testing.T) {
	block := &networkingv1.IPBlock{CIDR: "::/0"}
	for i := range 200 {
		block.Except = append(block.Except, fmt.Sprintf("2001:db8:%x::1/128", i*200))
	}
	np := policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {}, ingress: [{ports: [{port: 1}]}]}")
	np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}})
	if problems := parse(np).problems; len(problems) != 1 || problems[0].Reason != ReasonTooManyBlocks {
		t.Errorf("problems: %v", problems)
	}
	if n := len(Compile(Config{}, Snapshot{Policies: []*networkingv1.NetworkPolicy{np}}).ACLs) - len(baseACLs()); n != 1 {
		t.Errorf("%d ACLs, want that of the other rule", n)
	}
	block.Except = block.Except[:20]
	if problems := parse(np).problems; len(problems) != 0 {
		t.Errorf("twenty exceptions: %v", problems)
	}
}

func BenchmarkPodEvent(b *testing.B) {
	for _, pods := range []int{100, 10000} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			x := crowd(1000, pods)
			for b.Loop() {
				x.SetPod(crowdPod(1<<20, 3))
				x.Take()
				x.SetPod(crowdPod(1<<20, 4))
				x.Take()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N)/float64(time.Microsecond), "µs/event")
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		crowd(1000, 10000)
	}
}

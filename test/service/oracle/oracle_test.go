package oracle

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

var (
	four    = netip.MustParseAddr("10.0.0.1")
	six     = netip.MustParseAddr("fd00::1")
	outside = Client{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
	pod     = Client{Addrs: []netip.Addr{four}, Node: "n1"}
	third   = Client{Addrs: []netip.Addr{four}, Node: "n3"}
	vip     = netip.MustParseAddr("10.96.0.7")
)

// What is expected of two backends on n1 and n2, in words.
func TestExpect(t *testing.T) {
	local := func(s *corev1.ServiceSpec) {
		p := corev1.ServiceInternalTrafficPolicyLocal
		s.InternalTrafficPolicy, s.ExternalTrafficPolicy = &p, corev1.ServiceExternalTrafficPolicyLocal
	}
	two := []Backend{{Name: "a", Node: "n1", Addrs: []netip.Addr{four}}, {Name: "b", Node: "n2", Addrs: []netip.Addr{four}}}
	with := func(states ...State) []Backend {
		out := []Backend{two[0], two[1]}
		for i, s := range states {
			out[i].State = s
		}
		return out
	}
	at := func(kind Kind, node string) Target { return Target{Kind: kind, Addr: vip, Node: node} }
	for _, c := range []struct {
		name     string
		change   func(*corev1.ServiceSpec)
		backends []Backend
		from     Client
		to       Target
		want     string
	}{
		{"pod to ClusterIP", nil, two, pod, at(ClusterIP, ""), "each of a,b, the client's address kept"},
		{"host to ClusterIP", nil, two, Client{Node: "n1", OnHost: true}, at(ClusterIP, ""), "each of a,b"},
		{"the other family", nil, two, pod, Target{Kind: ClusterIP, Addr: six}, "refused"},
		{"nobody", nil, nil, pod, at(ClusterIP, ""), "refused"},
		{"nobody ready", nil, with(NotReady, NotReady), outside, at(NodePort, "n1"), "refused"},
		{"one ready", nil, with(NotReady), pod, at(ClusterIP, ""), "each of b, the client's address kept"},
		{"one ends", nil, with(Ending), pod, at(ClusterIP, ""), "each of b, the client's address kept"},
		{"all end", nil, with(Ending, Ending), pod, at(ClusterIP, ""), "each of a,b, the client's address kept"},
		{"not ready, published", func(s *corev1.ServiceSpec) { s.PublishNotReadyAddresses = true }, with(NotReady), pod, at(ClusterIP, ""), "each of a,b, the client's address kept"},
		{"affinity", func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP }, two, outside, at(NodePort, "n1"), "always the same of a,b"},
		{"Local, ClusterIP", local, two, pod, at(ClusterIP, ""), "each of a, the client's address kept"},
		{"Local, ClusterIP, none", local, two, third, at(ClusterIP, ""), "the client's address kept, dropped"},
		{"Local, one's own ends", local, with(Ending), pod, at(ClusterIP, ""), "each of a, the client's address kept"},
		{"Local, outside", local, two, outside, at(NodePort, "n2"), "each of b, the client's address kept"},
		{"Local, outside, none", local, two, outside, at(LoadBalancer, "n3"), "the client's address kept, dropped"},
		{"Local, inside, load balancer", local, two, third, at(LoadBalancer, "n3"), "each of a,b"},
		{"Local, inside, another's NodePort", local, two, third, at(NodePort, "n2"), "each of b"},
		{"Local, inside, own NodePort", local, two, third, at(NodePort, "n3"), "a,b, dropped"},
		{"ranges", func(s *corev1.ServiceSpec) { s.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} }, two, outside, at(LoadBalancer, "n1"), "dropped"},
		{"ranges, NodePort", func(s *corev1.ServiceSpec) { s.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} }, two, outside, at(NodePort, "n1"), "each of a,b"},
	} {
		svc := &corev1.Service{}
		if c.change != nil {
			c.change(&svc.Spec)
		}
		got := Expect(svc, c.backends, c.from, c.to).String()
		if text, _, _ := strings.Cut(got, " ("); text != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	by := func(name string, seen netip.Addr) Answer { return Answer{Backend: name, Seen: seen} }
	refused, silent := Answer{Refused: true}, Answer{Failed: "i/o timeout"}
	each, same := Expectation{Backends: []string{"a", "b"}, Each: true}, Expectation{Backends: []string{"a", "b"}, One: true}
	for _, c := range []struct {
		name    string
		e       Expectation
		answers []Answer
		wrong   bool
	}{
		{"not asked", Expectation{Dropped: true}, nil, true},
		{"both", each, []Answer{by("a", six), by("b", six)}, false},
		{"one of two", each, []Answer{by("a", six), by("a", six)}, true},
		{"in the end none", each, []Answer{by("a", six), by("b", six), silent}, true},
		{"a third", each, []Answer{by("a", six), by("b", six), by("c", six)}, true},
		{"always the same", same, []Answer{by("b", six), by("b", six)}, false},
		{"not the same", same, []Answer{by("b", six), by("a", six)}, true},
		{"kept", Expectation{Backends: []string{"a"}, Kept: true}, []Answer{by("a", four)}, false},
		{"not kept", Expectation{Backends: []string{"a"}, Kept: true}, []Answer{by("a", six)}, true},
		{"refused", Expectation{Refused: true}, []Answer{refused}, false},
		{"dropped, not refused", Expectation{Refused: true}, []Answer{silent}, true},
		{"refused, not dropped", Expectation{Dropped: true}, []Answer{refused}, true},
		{"barred, so refused", Expectation{Refused: true}, []Answer{{Barred: true}}, false},
		{"barred, so dropped", Expectation{Dropped: true}, []Answer{{Barred: true}}, false},
		{"barred, not answered", each, []Answer{{Barred: true}}, true},
		{"dropped, or answered", Expectation{Backends: []string{"a", "b"}, Dropped: true}, []Answer{silent}, false},
		{"answered, or dropped", Expectation{Backends: []string{"a", "b"}, Dropped: true}, []Answer{by("a", six)}, false},
		{"answered, not dropped", Expectation{Dropped: true}, []Answer{by("a", six)}, true},
	} {
		if got := c.e.Check(pod, c.answers); (got != "") != c.wrong {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	itself := Client{Addrs: []netip.Addr{four}, Node: "n1", Backend: "a"}
	if got := (Expectation{Backends: []string{"a"}, Kept: true}).Check(itself, []Answer{by("a", six)}); got != "" {
		t.Errorf("a backend that reaches itself under another address: %s", got)
	}
}

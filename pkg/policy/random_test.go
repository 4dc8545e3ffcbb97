package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// world is a random cluster: three namespaces of three pods, two nodes, and policies about them.
type world struct {
	r          *rand.Rand
	namespaces map[string]map[string]string
	pods       []*worldPod
	hosts      []Host
	// moving are the pods that take connections along.
	moving []ident.PortName
	// asked are the policies as the compiler gets them, meant what they mean: without the rules in which something is wrong.
	asked, meant []*networkingv1.NetworkPolicy
}

// worldPod is a Pod on a node.
type worldPod struct {
	Pod
	name, node string
}

var join = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")}

var (
	testPorts   = []int32{80, 81, 443, 8079, 8080, 8081, 9000, 65535}
	outside     = []string{"203.0.113.9", "203.0.113.200", "198.51.100.7", "2001:db8::9", "2001:db8:1::9"}
	labelKeys   = []string{"app", "all"} // "all" must not be taken for all pods
	labelValues = []string{"a", "b", "c"}
	portNames   = []string{"http", "dns"}
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func newWorld(r *rand.Rand) *world {
	w := &world{r: r, namespaces: map[string]map[string]string{}}
	for n := range 2 {
		h := Host{
			Node: fmt.Sprintf("n%d", n), IPs: addrs(fmt.Sprintf("192.0.2.%d", n+1), fmt.Sprintf("2001:db8:ffff::%d", n+1)),
			Own: addrs(fmt.Sprintf("100.64.0.%d", n+2), fmt.Sprintf("fd98::%d", n+2)), Clients: addrs(fmt.Sprintf("100.64.1.%d", n+2), fmt.Sprintf("fd98::1:%d", n+2)),
		}
		if n == 1 && w.one(4) {
			h.IPs = h.IPs[:1]
		}
		w.hosts = append(w.hosts, h)
	}
	for n := range 3 {
		name := fmt.Sprintf("ns%d", n)
		w.namespaces[name] = w.labels()
		for p := range 3 {
			w.pods = append(w.pods, w.pod(name, n, p))
		}
	}
	for _, p := range w.pods {
		if w.one(3) {
			w.moving = append(w.moving, p.Port)
		}
	}
	for n := range 2 + r.IntN(4) {
		w.addPolicy(fmt.Sprintf("p%d", n))
	}
	return w
}

// one is true once in n times.
func (w *world) one(n int) bool { return w.r.IntN(n) == 0 }

func pick[T any](w *world, from []T) T { return from[w.r.IntN(len(from))] }

func (w *world) labels() map[string]string {
	out := map[string]string{}
	for _, k := range labelKeys {
		if !w.one(3) {
			out[k] = pick(w, labelValues)
		}
	}
	return out
}

func (w *world) pod(namespace string, n, p int) *worldPod {
	name, node := fmt.Sprintf("pod%d", p), pick(w, w.hosts)
	out := &worldPod{name: name, node: node.Node, Pod: Pod{
		Port: ident.PodPort(namespace, name, ident.DefaultNetwork), Namespace: namespace, Labels: w.labels(),
		IPs: addrs(fmt.Sprintf("10.244.%d.%d", n, p+2), fmt.Sprintf("fd00:10:244:%d::%d", n, p+2)), HostNetwork: w.one(12),
	}}
	switch one := w.r.IntN(8); {
	case out.HostNetwork:
		out.IPs = node.IPs
	case one == 0:
		out.IPs = out.IPs[:1]
	case one == 1:
		out.IPs = out.IPs[1:]
	}
	for _, name := range portNames {
		for range w.r.IntN(3) { // the same name twice: TCP and UDP, or two containers
			out.Ports = append(out.Ports, PodPort{Name: name, Protocol: pick(w, []corev1.Protocol{"", "TCP", "UDP", "SCTP"}), Number: pick(w, testPorts)})
		}
	}
	return out
}

func (w *world) addPolicy(name string) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", w.r.IntN(3)), Name: name}}
	if w.one(4) {
		np.Annotations = map[string]string{LogAnnotation: pick(w, []string{LogDrop, LogAllow, LogAll, "?"})}
	}
	if w.one(2) {
		np.Spec.PodSelector = *w.selector()
	}
	np.Spec.PolicyTypes = pick(w, [][]networkingv1.PolicyType{nil, {}, {"Ingress"}, {"Egress"}, {"Egress", "Ingress"}})
	for range w.r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.portList()})
	}
	for range w.r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.portList()})
	}
	w.meant = append(w.meant, np)
	asked := np.DeepCopy()
	if w.one(6) {
		from, ports := w.badRule()
		asked.Spec.Ingress = append([]networkingv1.NetworkPolicyIngressRule{{From: from, Ports: ports}}, asked.Spec.Ingress...)
		if len(asked.Spec.PolicyTypes) > 0 || len(asked.Spec.Egress) > 0 { // else it would make the policy one of egress
			from, ports = w.badRule()
			asked.Spec.Egress = append(asked.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: from, Ports: ports})
		}
	}
	w.asked = append(w.asked, asked)
}

func (w *world) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch w.r.IntN(5) {
	case 0, 4:
	case 1, 2:
		s.MatchLabels = map[string]string{pick(w, labelKeys): pick(w, labelValues)}
	case 3:
		e := metav1.LabelSelectorRequirement{Key: pick(w, labelKeys), Operator: pick(w, []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"})}
		if e.Operator == "In" || e.Operator == "NotIn" {
			e.Values = []string{pick(w, labelValues), pick(w, labelValues)}
		}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{e}
		if w.one(3) {
			s.MatchLabels = map[string]string{pick(w, labelKeys): pick(w, labelValues)}
		}
	}
	return s
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	if w.one(3) {
		return pick(w, [][]networkingv1.NetworkPolicyPeer{nil, {}})
	}
	var out []networkingv1.NetworkPolicyPeer
	n := 1 + w.r.IntN(3)
	if w.one(40) {
		n = 3 * maxLists
	}
	for range n {
		switch w.r.IntN(4) {
		case 0:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: w.selector()})
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: w.selector()})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: w.selector(), PodSelector: w.selector()})
		case 3:
			block := w.block()
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: block})
			if w.one(3) {
				out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: sibling(block.CIDR)}})
			}
		}
	}
	return out
}

// block is one around an address that there is, or one of those that have something special.
func (w *world) block() *networkingv1.IPBlock {
	if w.one(2) {
		cidr := w.prefix(0)
		b := &networkingv1.IPBlock{CIDR: cidr.String()}
		for range w.r.IntN(3) {
			if e := w.prefix(cidr.Bits() + 1); cidr.Overlaps(e) && e.Bits() > cidr.Bits() {
				b.Except = append(b.Except, e.String())
			}
		}
		return b
	}
	return pick(w, []*networkingv1.IPBlock{
		{CIDR: "0.0.0.0/0"}, {CIDR: "::/0"},
		{CIDR: "0.0.0.0/0", Except: []string{"10.244.0.0/16", "192.0.2.0/24"}},
		{CIDR: "0.0.0.0/0", Except: []string{"203.0.113.128/25", "10.244.1.0/24", "203.0.113.0/24", "100.0.0.0/8"}},
		{CIDR: "::/0", Except: []string{"2001:db8::/48", "fd00:10:244:1::/64"}},
		{CIDR: "::/0", Except: []string{"2001:db8:ffff::1/128"}},
		{CIDR: "203.0.113.77/24"}, {CIDR: "203.0.113.0/24", Except: []string{"203.0.113.9/32"}},
		{CIDR: "192.0.2.0/30"}, {CIDR: "192.0.2.1/32"}, {CIDR: "10.244.0.2/31"}, {CIDR: "10.244.0.0/16", Except: []string{"10.244.0.0/24"}},
		{CIDR: "fd00:10:244::/48", Except: []string{"fd00:10:244:2::3/128", "fd00:10:244:0::/64"}}, {CIDR: "2001:db8:ffff::/64"},
		{CIDR: "0.0.0.0/0", Except: []string{"0.0.0.0/1", "128.0.0.0/1"}},
	})
}

// prefix is one of at least so many bits around an address that there is.
func (w *world) prefix(bits int) netip.Prefix {
	around := slices.Concat(addrs(outside...), w.hosts[0].IPs, w.hosts[1].Own, w.hosts[1].Clients)
	for range 3 {
		around = append(around, addrs(fmt.Sprintf("10.244.%d.%d", w.r.IntN(3), 2+w.r.IntN(3)), fmt.Sprintf("fd00:10:244:%d::%d", w.r.IntN(3), 2+w.r.IntN(3)))...)
	}
	a := pick(w, around)
	bits = min(bits, a.BitLen())
	return netip.PrefixFrom(a, bits+w.r.IntN(a.BitLen()-bits+1)).Masked()
}

// sibling is the other half of the prefix that is one bit shorter.
func sibling(cidr string) string {
	p := netip.MustParsePrefix(cidr).Masked()
	if p.Bits() == 0 {
		return cidr
	}
	low, high := halves(netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked())
	if p == low {
		return high.String()
	}
	return low.String()
}

func (w *world) portList() []networkingv1.NetworkPolicyPort {
	if w.one(3) {
		return pick(w, [][]networkingv1.NetworkPolicyPort{nil, {}})
	}
	var out []networkingv1.NetworkPolicyPort
	for range 1 + w.r.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if !w.one(4) {
			proto := pick(w, protocols[:])
			p.Protocol = &proto
		}
		switch w.r.IntN(8) {
		case 0:
		case 1, 2, 3:
			name := intstr.FromString(pick(w, portNames))
			p.Port = &name
		case 4, 5:
			n := intstr.FromInt32(pick(w, testPorts))
			p.Port = &n
		case 6, 7:
			a, b := pick(w, testPorts), pick(w, testPorts)
			a, b = min(a, b), max(a, b)
			n := intstr.FromInt32(a)
			p.Port, p.EndPort = &n, &b
		}
		out = append(out, p)
	}
	return out
}

// badRule is a rule in which something is wrong, beside what would be right.
func (w *world) badRule() ([]networkingv1.NetworkPolicyPeer, []networkingv1.NetworkPolicyPort) {
	name, number, end, udp, icmp := intstr.FromString("http"), intstr.FromInt32(90), int32(80), corev1.ProtocolUDP, corev1.Protocol("ICMP")
	zero, empty := intstr.FromInt32(0), intstr.FromString("")
	bad := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	blocks := []*networkingv1.IPBlock{
		{CIDR: "10.0.0.0"}, {CIDR: "10.0.0.0/33"}, {CIDR: ""}, {CIDR: "::ffff:10.0.0.0/104"}, {CIDR: "010.0.0.0/8"}, {CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/99"}},
		{CIDR: "10.0.0.0/8", Except: []string{"11.0.0.0/8"}}, {CIDR: "10.0.0.0/8", Except: []string{"10.0.0.0/8"}},
		{CIDR: "10.0.0.0/8", Except: []string{"0.0.0.0/0"}}, {CIDR: "0.0.0.0/0", Except: []string{"fd00::/64"}},
	}
	peers := []networkingv1.NetworkPolicyPeer{
		{}, {PodSelector: bad}, {NamespaceSelector: bad}, {NamespaceSelector: &metav1.LabelSelector{}, PodSelector: bad},
		{PodSelector: &metav1.LabelSelector{}, IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}}, {IPBlock: pick(w, blocks)}, {IPBlock: pick(w, blocks)},
	}
	list := []networkingv1.NetworkPolicyPort{
		{Port: &number, EndPort: &end}, {Port: &name, EndPort: &end}, {EndPort: &end, Protocol: &udp}, {Protocol: &icmp}, {Port: &zero}, {Port: &empty},
	}
	if w.one(2) {
		return append(w.peers(), pick(w, peers)), w.portList()
	}
	return w.peers(), append(w.portList(), pick(w, list))
}

// snapshot is what the compiler gets.
func (w *world) snapshot() Snapshot {
	s := Snapshot{Policies: w.asked, Namespaces: w.namespaces, Hosts: w.hosts, Moving: w.moving}
	for _, p := range w.pods {
		s.Pods = append(s.Pods, p.Pod)
	}
	return s
}

package e2e

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type (
	npol  = networkingv1.NetworkPolicy
	npeer = networkingv1.NetworkPolicyPeer
	nport = networkingv1.NetworkPolicyPort
)

const (
	typeIngress = networkingv1.PolicyTypeIngress
	typeEgress  = networkingv1.PolicyTypeEgress
)

// labelled selects by labels, given as key, value, key, value; everything if there are none.
func labelled(pairs ...string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for i := 0; i < len(pairs); i += 2 {
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[pairs[i]] = pairs[i+1]
	}
	return s
}

func expression(key string, op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}
}

func tcp(port int32) nport { return numbered(corev1.ProtocolTCP, port) }
func udp(port int32) nport { return numbered(corev1.ProtocolUDP, port) }

func numbered(protocol corev1.Protocol, port int32) nport {
	n := intstr.FromInt32(port)
	return nport{Protocol: &protocol, Port: &n}
}

func named(protocol corev1.Protocol, name string) nport {
	n := intstr.FromString(name)
	return nport{Protocol: &protocol, Port: &n}
}

func ranged(protocol corev1.Protocol, from, to int32) nport {
	p := numbered(protocol, from)
	p.EndPort = &to
	return p
}

func from(ports []nport, peers ...npeer) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports}
}

func to(ports []nport, peers ...npeer) networkingv1.NetworkPolicyEgressRule {
	return networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports}
}

func podsPeer(s *metav1.LabelSelector) npeer { return npeer{PodSelector: s} }
func nsPeer(s *metav1.LabelSelector) npeer   { return npeer{NamespaceSelector: s} }

func blockPeer(cidr string, except ...string) npeer {
	return npeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

// ingressPolicy isolates what it selects in ingress, but for the rules; egressPolicy likewise.
func ingressPolicy(ns string, s *metav1.LabelSelector, rules ...networkingv1.NetworkPolicyIngressRule) *npol {
	return &npol{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "p-"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *s, PolicyTypes: []networkingv1.PolicyType{typeIngress}, Ingress: rules},
	}
}

func egressPolicy(ns string, s *metav1.LabelSelector, rules ...networkingv1.NetworkPolicyEgressRule) *npol {
	return &npol{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "p-"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *s, PolicyTypes: []networkingv1.PolicyType{typeEgress}, Egress: rules},
	}
}

// untyped has no policyTypes: they follow from what it has.
func untyped(np *npol) *npol {
	np.Spec.PolicyTypes = nil
	return np
}

// policyCases are the rows of the truth table. Between them they have every field, absent, empty and given.
func policyCases() []policyCase {
	anything := labelled()
	one := func(name string, make func(ns map[string]string) *npol) policyCase {
		return policyCase{name, func(ns map[string]string) []*npol { return []*npol{make(ns)} }}
	}
	ingress := func(name string, selects *metav1.LabelSelector, rules ...networkingv1.NetworkPolicyIngressRule) policyCase {
		return one(name, func(ns map[string]string) *npol { return ingressPolicy(ns["x"], selects, rules...) })
	}
	egress := func(name string, selects *metav1.LabelSelector, rules ...networkingv1.NetworkPolicyEgressRule) policyCase {
		return one(name, func(ns map[string]string) *npol { return egressPolicy(ns["x"], selects, rules...) })
	}
	cases := []policyCase{
		ingress("default deny of ingress", anything),
		egress("default deny of egress", anything),
		one("default deny of both", func(ns map[string]string) *npol {
			np := ingressPolicy(ns["x"], anything)
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, typeEgress)
			return np
		}),
		ingress("permit all ingress", anything, from(nil)),
		egress("permit all egress", anything, to(nil)),
		ingress("empty lists", anything, from([]nport{}, []npeer{}...)),
		ingress("selects one pod", labelled("pod", "a")),
		ingress("selects by two labels", labelled("pod", "b", "tier", "back")),
		ingress("selects nobody", labelled("pod", "nobody")),
		ingress("selects by In", expression("pod", metav1.LabelSelectorOpIn, "a", "b")),
		ingress("selects by NotIn", expression("pod", metav1.LabelSelectorOpNotIn, "a")),
		ingress("selects by Exists", expression("tier", metav1.LabelSelectorOpExists)),
		ingress("selects by DoesNotExist", expression("absent", metav1.LabelSelectorOpDoesNotExist)),
		ingress("pods of the namespace", anything, from(nil, podsPeer(labelled("pod", "b")))),
		ingress("all pods of the namespace", anything, from(nil, podsPeer(anything))),
		ingress("pods of a namespace", anything, from(nil, npeer{NamespaceSelector: labelled("ns", "y"), PodSelector: labelled("pod", "a")})),
		ingress("a namespace or pods", anything, from(nil, nsPeer(labelled("ns", "y")), podsPeer(labelled("pod", "a")))),
		ingress("all namespaces", anything, from(nil, nsPeer(anything))),
		ingress("namespaces by expression", anything, from(nil, nsPeer(expression("ns", metav1.LabelSelectorOpNotIn, "z")))),
		ingress("pods of all namespaces", anything, from(nil, npeer{NamespaceSelector: anything, PodSelector: expression("pod", metav1.LabelSelectorOpIn, "a", "c")})),
		ingress("no namespace", anything, from(nil, nsPeer(labelled("ns", "nowhere")))),
		ingress("one TCP port", anything, from([]nport{tcp(7)})),
		ingress("one UDP port", anything, from([]nport{udp(8081)})),
		ingress("a port of both protocols", anything, from([]nport{tcp(7), udp(7)})),
		ingress("a protocol", anything, from([]nport{{Protocol: protocol(corev1.ProtocolUDP)}})),
		ingress("no protocol is TCP", anything, from([]nport{{Port: intOrString(8081)}})),
		ingress("named port, two numbers", anything, from([]nport{named(corev1.ProtocolTCP, "web")})),
		ingress("named UDP port", anything, from([]nport{named(corev1.ProtocolUDP, "dns")})),
		ingress("a name that nobody has", anything, from([]nport{named(corev1.ProtocolTCP, "none")})),
		ingress("a range", anything, from([]nport{ranged(corev1.ProtocolTCP, 8000, 8100)})),
		ingress("a range and a port", anything, from([]nport{ranged(corev1.ProtocolUDP, 1, 7), tcp(8081)})),
		ingress("peers and ports", labelled("tier", "back"), from([]nport{tcp(7)}, podsPeer(labelled("pod", "a"))), from([]nport{udp(7)}, nsPeer(labelled("ns", "z")))),
		one("ingress from an ipBlock", func(ns map[string]string) *npol {
			return ingressPolicy(ns["x"], anything, from(nil, blockPeer("10.244.0.0/16"), blockPeer("fd00:10:244::/64")))
		}),
		egress("ipBlock with except", anything, to(nil, blockPeer("0.0.0.0/0", "10.244.0.0/16"), blockPeer("::/0", "fd00:10:244::/64"))),
		egress("ipBlock of one family", anything, to(nil, blockPeer("0.0.0.0/0"))),
		ingress("nodes by ipBlock", anything, from([]nport{tcp(7)}, nodeBlocks()...)),
		egress("egress to pods and a port", anything, to([]nport{tcp(7)}, podsPeer(labelled("pod", "b")))),
		egress("egress to a namespace", labelled("tier", "back"), to(nil, nsPeer(labelled("team", "red")))),
		egress("egress to a named port", anything, to([]nport{named(corev1.ProtocolTCP, "web")}, nsPeer(anything))),
		egress("egress to a named port of anybody", anything, to([]nport{named(corev1.ProtocolTCP, "web")})),
		egress("egress to a named port of a block", anything, to([]nport{named(corev1.ProtocolTCP, "web")}, blockPeer("10.244.0.0/16"))),
		egress("egress to a range", anything, to([]nport{ranged(corev1.ProtocolTCP, 8081, 8081)})),
		one("untyped with egress", func(ns map[string]string) *npol {
			return untyped(egressPolicy(ns["x"], anything, to([]nport{udp(7)})))
		}),
		one("untyped with ingress alone", func(ns map[string]string) *npol {
			return untyped(ingressPolicy(ns["x"], anything, from(nil, podsPeer(anything))))
		}),
		{"several of one namespace", func(ns map[string]string) []*npol {
			return []*npol{
				ingressPolicy(ns["x"], anything), ingressPolicy(ns["x"], labelled("pod", "a"), from([]nport{tcp(7)})),
				ingressPolicy(ns["x"], labelled("tier", "front"), from([]nport{udp(7)}, nsPeer(labelled("ns", "y")))),
			}
		}},
		{"both ends", func(ns map[string]string) []*npol {
			return []*npol{
				egressPolicy(ns["y"], anything, to(nil, nsPeer(labelled("ns", "x")))),
				ingressPolicy(ns["x"], anything, from([]nport{tcp(8081), udp(8081)}, npeer{NamespaceSelector: labelled("ns", "y"), PodSelector: labelled("pod", "c")})),
			}
		}},
		one("a thousand peers", func(ns map[string]string) *npol {
			var peers []npeer
			for i := range 500 {
				peers = append(peers, podsPeer(labelled("pod", fmt.Sprint("nobody-", i))), blockPeer(fmt.Sprintf("198.18.%d.%d/32", i/250, i%250)))
			}
			peers[777] = podsPeer(labelled("pod", "b"))
			return ingressPolicy(ns["x"], anything, from([]nport{tcp(7), udp(8081)}, peers...))
		}),
		{"deny in every namespace", func(ns map[string]string) []*npol {
			var out []*npol
			for _, n := range ns {
				np := ingressPolicy(n, anything)
				np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, typeEgress)
				out = append(out, np)
			}
			return out
		}},
	}
	return cases
}

func protocol(p corev1.Protocol) *corev1.Protocol { return &p }

func intOrString(n int32) *intstr.IntOrString {
	v := intstr.FromInt32(n)
	return &v
}

// nodeBlocks are the addresses of the first node.
func nodeBlocks() []npeer {
	var out []npeer
	for _, ip := range cluster.NodeIPs("node1") {
		out = append(out, blockPeer(fmt.Sprintf("%s/%d", ip, ip.BitLen())))
	}
	return out
}

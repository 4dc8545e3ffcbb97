package main

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/bench/central"
)

// A namespace has perNamespace policies: one denies all in both directions, two are about all of its pods, and each of the others is about one of its apps.
const (
	perNamespace = 10
	apps         = perNamespace - 3
	teams        = 10
)

// Namespaces that policies name: the cluster's DNS, and what scrapes everything.
const (
	dns        = "bench-dns"
	monitoring = "bench-monitoring"
)

func namespaceName(i int) string { return fmt.Sprintf("bench-%03d", i) }

// namespaces are the labels of each.
func namespaces(policies int) map[string]map[string]string {
	out := map[string]map[string]string{dns: {"role": "dns"}, monitoring: {"role": "monitoring"}}
	for i := range policies / perNamespace {
		out[namespaceName(i)] = map[string]string{"team": fmt.Sprint(i % teams)}
	}
	return out
}

// newPolicies are all policies.
func newPolicies(policies int) []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for i := range policies / perNamespace {
		out = append(out, namespacePolicies(i)...)
	}
	return out
}

func namespacePolicies(i int) []*networkingv1.NetworkPolicy {
	both := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	named := func(name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceName(i), Name: name}, Spec: spec}
	}
	udp := corev1.ProtocolUDP
	out := []*networkingv1.NetworkPolicy{
		named("deny", networkingv1.NetworkPolicySpec{PolicyTypes: both}),
		named("dns", networkingv1.NetworkPolicySpec{PolicyTypes: both[1:], Egress: []networkingv1.NetworkPolicyEgressRule{{
			To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: label("role", "dns")}}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: port(53)}, {Port: port(53)}},
		}}}),
		named("monitoring", networkingv1.NetworkPolicySpec{PolicyTypes: both[:1], Ingress: []networkingv1.NetworkPolicyIngressRule{{
			From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: label("role", "monitoring")}}, Ports: []networkingv1.NetworkPolicyPort{{Port: port(9090)}},
		}}}),
	}
	for app := range apps {
		// Beside its neighbour of the namespace, each app talks to its likes of the whole team.
		next, likes := label("app", fmt.Sprint((app+1)%apps)), label("app", fmt.Sprint(app))
		team := networkingv1.NetworkPolicyPeer{NamespaceSelector: label("team", fmt.Sprint(i%teams)), PodSelector: likes}
		out = append(out, named(fmt.Sprintf("app-%d", app), networkingv1.NetworkPolicySpec{
			PodSelector: *likes, PolicyTypes: both,
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{PodSelector: next}, team}, Ports: []networkingv1.NetworkPolicyPort{{Port: port(8000 + int32(app))}},
			}},
			Egress: []networkingv1.NetworkPolicyEgressRule{{
				To: []networkingv1.NetworkPolicyPeer{{PodSelector: next}, {IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8"}}}},
			}},
		}))
	}
	return out
}

func label(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func port(n int32) *intstr.IntOrString {
	p := intstr.FromInt32(n)
	return &p
}

func newPod(namespace, name, node string, app int) *corev1.Pod {
	return central.NewPod(namespace, name, node, fmt.Sprint(app))
}

// crowdPod is one of the pods that are there, evenly over namespaces, apps and nodes.
func (c config) crowdPod(i int) *corev1.Pod {
	spaces := c.policies / perNamespace
	return newPod(namespaceName(i%spaces), fmt.Sprintf("p%05d", i), central.NodeName(i%c.nodes), i/spaces%apps)
}

// places are the rows that a pod belongs to, by family and for its port. They follow from the policies and the pod's labels alone.
type places struct {
	sets   [2][]string // IPv4, IPv6
	groups []string
}

// placesOf asks the compiler itself.
func placesOf(policies []*networkingv1.NetworkPolicy, spaces map[string]map[string]string, pod *corev1.Pod) places {
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} // any will do
	lsp := ident.PodPort(pod.Namespace, pod.Name, ident.DefaultNetwork)
	x := policy.Fill(policy.Config{}, policy.Snapshot{Policies: policies, Namespaces: spaces, Pods: []policy.Pod{{Port: lsp, Namespace: pod.Namespace, Labels: pod.Labels, IPs: addrs}}})
	out := places{groups: x.GroupsOf(lsp)}
	for _, s := range x.Rows().Sets {
		for i, a := range addrs {
			if slices.Contains(s.Addresses, a.String()) {
				out.sets[i] = append(out.sets[i], s.Name)
			}
		}
	}
	return out
}

// countACLs is how many rows the policies and the nodes come to.
func countACLs(policies []*networkingv1.NetworkPolicy, nodes int) int {
	s := policy.Snapshot{Policies: policies}
	for i := range nodes {
		s.Hosts = append(s.Hosts, policy.Host{Node: central.NodeName(i), Own: []netip.Addr{netip.MustParseAddr("100.64.0.2")}})
	}
	return len(policy.Compile(policy.Config{}, s).ACLs)
}

package oracle

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cluster is what policies are about.
type Cluster struct {
	// Namespaces are the labels of each.
	Namespaces map[string]map[string]string
	Policies   []*networkingv1.NetworkPolicy
}

// Pod is a pod, or a VM.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	Node            string
	// Ports of all its containers. An empty protocol is TCP.
	Ports []corev1.ContainerPort
}

// End is one end of a connection: a pod, a node itself, or an address of something else.
type End struct {
	// Addr is the address that the other end sees: a pod's, a node's own, or another.
	Addr netip.Addr
	// Pod is nil if the end is none, or one on its node's network.
	Pod *Pod
	// Node is set when the node of that name itself sends, which includes pods on its network. A client that the node passes on under its own
	// address has the address and not this.
	Node string
}

// Flow is a connection that somebody opens.
type Flow struct {
	From, To End
	Protocol corev1.Protocol
	// Port is the destination's, at the destination itself: not that of a Service.
	Port int32
}

// Verdict says whether a flow is permitted, and why.
type Verdict struct {
	Allowed bool
	Why     string
}

// Judge says whether a flow is permitted. Policies that the API server would refuse are not for it: what it cannot read it takes for a rule that permits nothing.
func (c *Cluster) Judge(f Flow) Verdict {
	if f.From.Pod != nil && f.From.Pod == f.To.Pod {
		return Verdict{true, "a pod cannot block access to itself"}
	}
	out := c.egress(f)
	if !out.Allowed {
		return out
	}
	in := c.ingress(f)
	return Verdict{in.Allowed, out.Why + "; " + in.Why}
}

// egress: "Outgoing traffic is allowed if there are no NetworkPolicies selecting the pod, OR if the traffic matches at least one egress rule across all of the
// NetworkPolicy objects whose podSelector matches the pod."
func (c *Cluster) egress(f Flow) Verdict {
	isolated := false
	for _, np := range c.Policies {
		if f.From.Pod == nil || !affects(np, networkingv1.PolicyTypeEgress) || !selects(np, f.From.Pod) {
			continue
		}
		isolated = true
		for i, rule := range np.Spec.Egress {
			if c.peers(np, rule.To, f.To) && portsMatch(rule.Ports, f) {
				return Verdict{true, fmt.Sprintf("egress[%d] of %s/%s", i, np.Namespace, np.Name)}
			}
		}
	}
	if isolated {
		return Verdict{false, "egress: isolated, and no rule matches"}
	}
	return Verdict{true, "egress: not isolated"}
}

// ingress: "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod, OR if the traffic source is the pod's local node, OR if the traffic
// matches at least one ingress rule across all of the NetworkPolicy objects whose podSelector matches the pod."
func (c *Cluster) ingress(f Flow) Verdict {
	isolated := false
	if f.To.Pod != nil && f.From.Node != "" && f.From.Node == f.To.Pod.Node {
		return Verdict{true, "ingress: from the pod's node"}
	}
	for _, np := range c.Policies {
		if f.To.Pod == nil || !affects(np, networkingv1.PolicyTypeIngress) || !selects(np, f.To.Pod) {
			continue
		}
		isolated = true
		for i, rule := range np.Spec.Ingress {
			if c.peers(np, rule.From, f.From) && portsMatch(rule.Ports, f) {
				return Verdict{true, fmt.Sprintf("ingress[%d] of %s/%s", i, np.Namespace, np.Name)}
			}
		}
	}
	if isolated {
		return Verdict{false, "ingress: isolated, and no rule matches"}
	}
	return Verdict{true, "ingress: not isolated"}
}

// affects: "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that contain an egress section are assumed to
// affect egress, and all policies are assumed to affect ingress."
func affects(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return direction == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
	}
	for _, t := range np.Spec.PolicyTypes {
		if t == direction {
			return true
		}
	}
	return false
}

func selects(np *networkingv1.NetworkPolicy, p *Pod) bool {
	return np.Namespace == p.Namespace && selected(&np.Spec.PodSelector, p.Labels)
}

// selected: "standard label selector semantics; if present but empty, it selects all".
func selected(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}

// peers: "If this field is empty or missing, this rule matches all. If this field is present and contains at least one item, this rule allows traffic only if the
// traffic matches at least one item in the list."
func (c *Cluster) peers(np *networkingv1.NetworkPolicy, list []networkingv1.NetworkPolicyPeer, end End) bool {
	for i := range list {
		if c.peer(np, &list[i], end) {
			return true
		}
	}
	return len(list) == 0
}

func (c *Cluster) peer(np *networkingv1.NetworkPolicy, peer *networkingv1.NetworkPolicyPeer, end End) bool {
	if peer.IPBlock != nil {
		return inBlock(peer.IPBlock, end.Addr)
	}
	if end.Pod == nil {
		return false
	}
	if peer.NamespaceSelector == nil {
		return end.Pod.Namespace == np.Namespace && selected(peer.PodSelector, end.Pod.Labels)
	}
	namespace, known := c.Namespaces[end.Pod.Namespace]
	if !known || !selected(peer.NamespaceSelector, namespace) {
		return false
	}
	return peer.PodSelector == nil || selected(peer.PodSelector, end.Pod.Labels)
}

// inBlock: "The except entry describes CIDRs that should not be included within this rule."
func inBlock(b *networkingv1.IPBlock, a netip.Addr) bool {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil || !cidr.Contains(a) {
		return false
	}
	for _, text := range b.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil || except.Contains(a) {
			return false
		}
	}
	return true
}

// portsMatch: "If this field is empty or missing, this rule matches all ports. If this field is present and contains at least one item, then this rule allows traffic
// only if the traffic matches at least one port in the list."
func portsMatch(list []networkingv1.NetworkPolicyPort, f Flow) bool {
	for i := range list {
		if portMatches(&list[i], f) {
			return true
		}
	}
	return len(list) == 0
}

func portMatches(p *networkingv1.NetworkPolicyPort, f Flow) bool {
	protocol := corev1.ProtocolTCP // "If not specified, this field defaults to TCP."
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	switch {
	case protocol != f.Protocol:
		return false
	case p.Port == nil: // "If this field is not provided, this matches all port names and numbers."
		return true
	case p.Port.Type == intstr.String:
		return named(f.To.Pod, protocol, p.Port.StrVal, f.Port)
	case p.EndPort != nil: // "the range of ports from port to endPort if set, inclusive"
		return p.Port.IntVal <= f.Port && f.Port <= *p.EndPort
	}
	return p.Port.IntVal == f.Port
}

// named: the port of "a named port on a pod", which is the one that is connected to.
func named(p *Pod, protocol corev1.Protocol, name string, number int32) bool {
	if p == nil {
		return false
	}
	for _, port := range p.Ports {
		has := port.Protocol
		if has == "" {
			has = corev1.ProtocolTCP
		}
		if port.Name == name && has == protocol && port.ContainerPort == number {
			return true
		}
	}
	return false
}

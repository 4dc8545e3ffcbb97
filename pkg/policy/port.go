package policy

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// span is a range of ports, both ends included.
type span struct{ first, last int32 }

type spans []span

const maxPort = 65535

// ports is what a rule says of one protocol.
type ports struct {
	// all: any port. The others are empty then.
	all   bool
	spans spans // sorted; they neither overlap nor touch
	names []string
}

// protocols are those that a policy can name, in the order in which ACLs are written.
var protocols = [...]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// parsePorts returns nothing for a list that is empty: the rule is for all traffic then, whatever its protocol.
func (p *parser) parsePorts(field string, list []networkingv1.NetworkPolicyPort) map[corev1.Protocol]ports {
	if len(list) == 0 {
		return nil
	}
	out := map[corev1.Protocol]ports{}
	for i := range list {
		p.parsePort(fmt.Sprintf("%s[%d]", field, i), &list[i], out)
	}
	for proto, ps := range out {
		if ps.all {
			out[proto] = ports{all: true}
			continue
		}
		slices.Sort(ps.names)
		ps.names, ps.spans = slices.Compact(ps.names), merge(ps.spans)
		out[proto] = ps
	}
	return out
}

func (p *parser) parsePort(field string, port *networkingv1.NetworkPolicyPort, out map[corev1.Protocol]ports) {
	proto := corev1.ProtocolTCP
	if port.Protocol != nil {
		proto = *port.Protocol
	}
	if !slices.Contains(protocols[:], proto) {
		p.problem(ReasonInvalidProtocol, field+".protocol", "%q: want TCP, UDP or SCTP", proto)
		return
	}
	ps := out[proto]
	switch {
	case port.EndPort != nil && (port.Port == nil || port.Port.Type == intstr.String):
		p.problem(ReasonInvalidEndPort, field+".endPort", "%d: want a number as port beside it", *port.EndPort)
	case port.Port == nil:
		ps.all = true
	case port.Port.Type == intstr.String && port.Port.StrVal == "":
		p.problem(ReasonInvalidPort, field+".port", "the name is empty: want the name of a container port, or a number")
	case port.Port.Type == intstr.String:
		ps.names = append(ps.names, port.Port.StrVal)
	case port.Port.IntVal < 1 || port.Port.IntVal > maxPort:
		p.problem(ReasonInvalidPort, field+".port", "%d: want 1 to %d", port.Port.IntVal, maxPort)
	case port.EndPort == nil:
		ps.spans = append(ps.spans, span{port.Port.IntVal, port.Port.IntVal})
	case *port.EndPort < port.Port.IntVal || *port.EndPort > maxPort:
		p.problem(ReasonInvalidEndPort, field+".endPort", "%d: want %d (the port) to %d", *port.EndPort, port.Port.IntVal, maxPort)
	default:
		ps.spans = append(ps.spans, span{port.Port.IntVal, *port.EndPort})
	}
	out[proto] = ps
}

// merge sorts spans and joins those that overlap or touch.
func merge(list spans) spans {
	slices.SortFunc(list, func(a, b span) int { return int(a.first - b.first) })
	var out spans
	for _, s := range list {
		if n := len(out); n > 0 && s.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

// match says that a packet is of a protocol, and to one of the spans if there are any.
func (s spans) match(proto corev1.Protocol) string {
	name := strings.ToLower(string(proto))
	var single, terms []string
	for _, p := range s {
		if p.first == p.last {
			single = append(single, fmt.Sprint(p.first))
		}
	}
	switch len(single) {
	case 0:
	case 1:
		terms = append(terms, name+".dst == "+single[0])
	default:
		terms = append(terms, name+".dst == {"+strings.Join(single, ", ")+"}")
	}
	for _, p := range s {
		if p.first != p.last {
			terms = append(terms, fmt.Sprintf("%d <= %s.dst <= %d", p.first, name, p.last))
		}
	}
	switch len(terms) {
	case 0:
		return name
	case 1:
		return terms[0]
	}
	return "(" + strings.Join(terms, " || ") + ")"
}

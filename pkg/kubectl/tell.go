package kubectl

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// traced is a packet's course with all that is known of those whom it met.
type traced struct {
	flow     microflow
	from, to end
	course   course
	// acls are rows of NB, by the first digits of the logical flows that were made of them.
	acls map[string]row
	// reached has the port by which the packet leaves; nil if that is no pod's and no VM's.
	reached *end
	// isolating are the policies that isolate whom the packet was dropped for.
	isolating []string
}

// lines tell the course in words, and end with what became of the packet.
func (t traced) lines() []string {
	m := t.flow
	src, dst, what := m.src.String(), m.dst.String(), "ping"
	if m.protocol != protocolICMP {
		src, dst, what = netip.AddrPortFrom(m.src, clientPort).String(), netip.AddrPortFrom(m.dst, m.port).String(), strings.ToUpper(m.protocol)
	}
	out := []string{fmt.Sprintf("%s from %s to %s", what, named(t.from, src), named(t.to, dst)), ""}
	before := ""
	for i := range t.course.legs {
		l := &t.course.legs[i]
		if l.inport == "" {
			break // an answer that OVN gives in the place of another
		}
		if !l.egress || l.datapath != before {
			out = append(out, t.hop(l))
		}
		before = l.datapath
		for j := range l.flows {
			if text := t.word(l, &l.flows[j]); text != "" {
				out = append(out, "  "+text)
			}
		}
	}
	return append(out, "", t.end())
}

func named(e end, address string) string {
	if strings.HasPrefix(address, e.name) {
		return address
	}
	return fmt.Sprintf("%s (%s)", e.name, address)
}

// hop is a switch or a router that the packet comes to.
func (t traced) hop(l *leg) string {
	switch {
	case strings.HasPrefix(l.datapath, "network/"):
		return "router " + l.datapath
	case l.inport == t.flow.inport:
		return fmt.Sprintf("switch %s, from %s on %s", l.datapath, t.from.name, cmp.Or(t.from.node, "no node"))
	}
	return "switch " + l.datapath
}

// word is what there is to say of a logical flow, mostly nothing.
func (t traced) word(l *leg, f *logicalFlow) string {
	if row, ok := t.acls[f.id]; ok && f.acl() {
		return aclText(row)
	}
	if f.acl() {
		return fmt.Sprintf("an ACL that northd does not name: %s", f.match)
	}
	if all := f.backends(); all != nil {
		text := fmt.Sprintf("load balancer: %s to %s", t.to.name, strings.Join(all, ", "))
		if t.reached != nil && len(all) > 1 {
			text = fmt.Sprintf("load balancer: %s to one of %d endpoints, this time of %s", t.to.name, len(all), t.reached.name)
		}
		return text
	}
	if f.stage == "lr_in_policy" {
		for _, a := range f.actions {
			if strings.HasPrefix(a, `outport = "gateway/join/`) {
				return "leaves by " + cmp.Or(t.exit(), "a node")
			}
		}
	}
	if f.stage == "ls_in_apply_port_sec" && l.drops() {
		return "port security"
	}
	return ""
}

// aclText is an ACL of Godwit's in an operator's words.
func aclText(r row) string {
	ids := r.texts("external_ids")
	verb := map[string]string{"drop": "drops it", "reject": "refuses it"}[r.text("action")]
	verb = cmp.Or(verb, "permits it")
	direction := map[string]string{"to-lport": "ingress", "from-lport": "egress"}[r.text("direction")]
	switch ids[ident.OwnerKey] {
	case ident.OwnerPolicy:
		return fmt.Sprintf("%s: NetworkPolicy %s/%s %s, by %s", direction, ids[ident.KeyNamespace], ids[ident.KeyName], verb, ruleText(ids[ident.KeyRule]))
	case ident.OwnerNode, ident.OwnerNetwork:
		if strings.HasSuffix(ids[ident.KeyRule], "/drop") {
			return direction + ": isolated, and no NetworkPolicy permits it"
		}
		return fmt.Sprintf("%s: exempt from NetworkPolicies (%s)", direction, ids[ident.KeyRule])
	}
	return fmt.Sprintf("%s: an ACL that is not Godwit's, %s, %s: %s", direction, r.text("_uuid"), verb, r.text("match"))
}

// ruleText is KeyRule of a policy's ACL, DIRECTION/NUMBER/…, as the index of a rule in the object.
func ruleText(rule string) string {
	parts := strings.Split(rule, "/")
	if len(parts) < 2 {
		return rule
	}
	return fmt.Sprintf("spec.%s[%s]", parts[0], parts[1])
}

// drops says whether the packet ends in the leg.
func (p *leg) drops() bool {
	n := len(p.flows)
	return n > 0 && len(p.flows[n-1].actions) > 0 && p.flows[n-1].actions[len(p.flows[n-1].actions)-1] == "drop;"
}

// isolated is the end that NetworkPolicies isolate where the packet was dropped for want of one that permits it, and in which direction.
func (t traced) isolated() (*end, networkingv1.PolicyType) {
	if t.course.output() != "" {
		return nil, ""
	}
	l, f := t.course.last()
	if f == nil || !f.acl() || !strings.HasSuffix(t.acls[f.id].texts("external_ids")[ident.KeyRule], "/drop") {
		return nil, ""
	}
	if l.egress {
		if t.reached != nil {
			return t.reached, networkingv1.PolicyTypeIngress
		}
		return nil, ""
	}
	return &t.from, networkingv1.PolicyTypeEgress
}

// exit is the node through which the packet leaves the pod network. ovn-trace takes every port for one of its own chassis: where a router's policy is for the chassis of the
// sender, which of them it took says nothing, and it is the sender's.
func (t traced) exit() string {
	for _, l := range t.course.legs {
		for _, f := range l.flows {
			if f.stage == "lr_in_policy" && strings.Contains(f.match, "is_chassis_resident(") {
				return cmp.Or(t.from.node, "the node where it starts")
			}
		}
	}
	if node, ok := strings.CutPrefix(t.course.output(), "node/"); ok {
		return node
	}
	return ""
}

// outcome is an error if the packet neither arrives nor leaves.
func (t traced) outcome() error {
	if t.course.output() == "" || t.course.refused() != nil {
		return errors.New("it does not arrive")
	}
	return nil
}

// end is what became of the packet.
func (t traced) end() string {
	if f := t.course.refused(); f != nil {
		if f.stage == "ls_in_lb" {
			return fmt.Sprintf("refused: %s has no endpoint that is ready", t.to.name)
		}
		return "refused: " + f.match
	}
	out := t.course.output()
	switch {
	case out == "":
		return "dropped: " + t.whyDropped()
	case out == t.flow.inport && t.reached != nil && t.flow.dst != t.flow.src && t.to.service == nil:
		return "arrives: the router answers it itself"
	case strings.HasPrefix(out, "node/"):
		return fmt.Sprintf("leaves the pod network by %s, whose own routes and nftables decide what comes of it", cmp.Or(t.exit(), "a node"))
	case t.reached == nil:
		return "arrives: at port " + out
	case t.reached.node == t.from.node:
		return fmt.Sprintf("arrives: at %s, on the same node", t.reached.name)
	}
	return fmt.Sprintf("arrives: at %s, by the tunnel from %s to %s", t.reached.name, cmp.Or(t.from.node, "no node"), cmp.Or(t.reached.node, "no node"))
}

func (t traced) whyDropped() string {
	if who, direction := t.isolated(); who != nil {
		by := "a NetworkPolicy that is gone by now"
		if len(t.isolating) > 0 {
			by = "NetworkPolicy " + strings.Join(t.isolating, ", ")
		}
		return fmt.Sprintf("%s is isolated in %s by %s, and no rule permits this", who.name, strings.ToLower(string(direction)), by)
	}
	l, f := t.course.last()
	switch {
	case f == nil:
		return "OVN has no logical flow for it: does the port exist? kubectl ovn nbctl lsp-list subnet/" + t.from.subnet
	case f.acl():
		return aclText(t.acls[f.id])
	case strings.HasSuffix(f.stage, "_port_sec"):
		return fmt.Sprintf("port security: %s may not send this, or %s not receive it", l.inport, cmp.Or(l.outport, "the other"))
	case f.stage == "lr_in_policy":
		return "a policy of the router: " + f.match + " (docs/egress.md)"
	}
	return fmt.Sprintf("in stage %s of %s: %s; --raw has all of it", f.stage, l.datapath, cmp.Or(f.match, "nothing matches"))
}

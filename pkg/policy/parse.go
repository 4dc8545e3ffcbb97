package policy

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// direction is one of a policy's two.
type direction int

const (
	ingress direction = iota
	egress
)

func (d direction) String() string { return [...]string{"ingress", "egress"}[d] }

func (d direction) acl() nbdb.ACLDirection {
	return [...]nbdb.ACLDirection{nbdb.ACLDirectionToLport, nbdb.ACLDirectionFromLport}[d]
}

// parsed is what a policy says. It depends on nothing but the policy.
type parsed struct {
	key      Key
	selects  classSpec
	isolates [2]bool // by direction
	rules    []rule
	log      logging
	problems []Problem
}

// rule is one rule that permits something.
type rule struct {
	direction direction
	index     int // in the policy's list
	// anyPeer: there is no list of peers.
	anyPeer bool
	// lists are the classes that the list's selectors select, sorted and without duplicates: those of each address set.
	lists []classList
	// terms is what the list's selectors say.
	terms int
	// block is the prefixes of the list's ipBlocks, their exceptions cut out; within the pods that have an address in it.
	block  blockSpec
	within classList
	// ports by protocol; nil for all traffic.
	ports map[corev1.Protocol]ports
}

// Key names a NetworkPolicy.
type Key struct{ Namespace, Name string }

// String is namespace/name.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Isolates says in which directions a policy isolates what has these labels in its namespace: in none if it does not select it.
func Isolates(np *networkingv1.NetworkPolicy, labels map[string]string) (in, out bool) {
	p := parse(np)
	if !p.selects.pods.matches(labels) {
		return false, false
	}
	return p.isolates[ingress], p.isolates[egress]
}

type parser struct {
	namespace string
	problems  []Problem
	// wrong counts the problems, those included that are not told.
	wrong int
	// used is what the rules come to so far, carved how many prefixes their ipBlocks were cut into.
	used   extent
	carved int
}

// maxProblems bounds what is told of one policy: each is an event.
const maxProblems = 100

func (p *parser) problem(reason Reason, field, format string, args ...any) {
	if p.wrong++; p.wrong <= maxProblems {
		p.problems = append(p.problems, Problem{Reason: reason, Field: field, Detail: fmt.Sprintf(format, args...)})
	}
}

func parse(np *networkingv1.NetworkPolicy) *parsed {
	p := &parser{namespace: np.Namespace}
	out := &parsed{key: Key{np.Namespace, np.Name}}
	out.log = p.parseLog(np.Annotations)
	pods, ok := p.parseSelected(&np.Spec.PodSelector)
	out.selects = podsOf(np.Namespace, pods)
	out.isolates = p.parseTypes(&np.Spec)
	if ok {
		out.rules = p.parseRules(&np.Spec, out.isolates)
	}
	out.problems = p.problems
	return out
}

// parseSelected reads whom the policy selects: every pod of the namespace, and false, if that cannot be read.
func (p *parser) parseSelected(s *metav1.LabelSelector) (selector, bool) {
	const field, follows = "spec.podSelector", "every pod of the namespace is isolated until it is put right"
	if p.used.terms = termsOf(s); p.used.terms > maxTerms {
		p.problem(ReasonTooManyTerms, field, "%d labels, expressions and their values: want at most %d in one policy; %s", p.used.terms, maxTerms, follows)
		return selector{}, false
	}
	parsed, err := parseSelector(s)
	if err != nil {
		p.problem(ReasonInvalidSelector, field, "%v: %s", err, follows)
	}
	return parsed, err == nil
}

// parseTypes follows the API's defaults: Ingress always, Egress if there are egress rules.
func (p *parser) parseTypes(spec *networkingv1.NetworkPolicySpec) (isolates [2]bool) {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{ingress: true, egress: len(spec.Egress) > 0}
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			isolates[ingress] = true
		case networkingv1.PolicyTypeEgress:
			isolates[egress] = true
		default:
			p.problem(ReasonInvalidPolicyType, fmt.Sprintf("spec.policyTypes[%d]", i),
				"%q: want Ingress or Egress; the pods are isolated in both directions until it is put right", t)
			isolates = [2]bool{true, true}
		}
	}
	return isolates
}

// parseRules leaves out rules in which something is wrong, and those of a direction that the policy is not about.
func (p *parser) parseRules(spec *networkingv1.NetworkPolicySpec, isolates [2]bool) []rule {
	var out []rule
	add := func(r rule, peers []networkingv1.NetworkPolicyPeer, list []networkingv1.NetworkPolicyPort) {
		before := p.wrong
		field, peerField := fmt.Sprintf("spec.%s[%d]", r.direction, r.index), [...]string{".from", ".to"}[r.direction]
		r.ports = p.parsePorts(field+".ports", list)
		if p.readable(field+peerField, peers, &r) {
			p.parsePeers(field+peerField, peers, &r)
		}
		if p.wrong == before && isolates[r.direction] && p.fits(field, &r) {
			out = append(out, r)
		}
	}
	for i := range p.maxRules(ingress, len(spec.Ingress)) {
		add(rule{direction: ingress, index: i}, spec.Ingress[i].From, spec.Ingress[i].Ports)
	}
	for i := range p.maxRules(egress, len(spec.Egress)) {
		add(rule{direction: egress, index: i}, spec.Egress[i].To, spec.Egress[i].Ports)
	}
	return out
}

func (p *parser) parsePeers(field string, peers []networkingv1.NetworkPolicyPeer, r *rule) {
	r.anyPeer = len(peers) == 0
	var classes []classSpec
	var blocks []netip.Prefix
	for i := range peers {
		peer, field := &peers[i], fmt.Sprintf("%s[%d]", field, i)
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		switch {
		case selects && peer.IPBlock != nil:
			p.problem(ReasonInvalidPeer, field, "an ipBlock beside a selector: want one of them; the rule permits nothing")
		case selects:
			if c, ok := p.parsePeer(field, peer); ok {
				classes = append(classes, c)
			}
		case peer.IPBlock != nil:
			blocks = append(blocks, p.parseBlock(field+".ipBlock", peer.IPBlock)...)
		default:
			p.problem(ReasonInvalidPeer, field, "is empty: want podSelector, namespaceSelector or ipBlock; the rule permits nothing")
		}
	}
	slices.SortFunc(classes, classSpec.compare)
	classes = slices.CompactFunc(classes, func(a, b classSpec) bool { return a.compare(b) == 0 })
	if blocks = union(blocks); len(blocks) > maxPrefixes {
		p.problem(ReasonTooManyBlocks, field, "the ipBlocks are %d prefixes when their exceptions are cut out: want at most %d; the rule permits nothing", len(blocks), maxPrefixes)
		return
	}
	r.name(classes, blocks)
}

// maxPrefixes bounds the prefixes of one rule, which each node has flows for: a single object has room for ten thousands of exceptions, each of which can leave 128.
const maxPrefixes = 8192

// parsePeer: a podSelector alone is about the policy's own namespace, a namespaceSelector alone about all pods of the namespaces.
func (p *parser) parsePeer(field string, peer *networkingv1.NetworkPolicyPeer) (classSpec, bool) {
	selectorOf := func(name string, s *metav1.LabelSelector) (selector, bool) {
		if s == nil {
			return selector{}, true
		}
		parsed, err := parseSelector(s)
		if err != nil {
			p.problem(ReasonInvalidSelector, field+"."+name, "%v; the rule permits nothing", err)
		}
		return parsed, err == nil
	}
	pods, podsOK := selectorOf("podSelector", peer.PodSelector)
	namespaces, namespacesOK := selectorOf("namespaceSelector", peer.NamespaceSelector)
	if peer.NamespaceSelector == nil {
		return podsOf(p.namespace, pods), podsOK
	}
	return podsWhere(namespaces, pods), podsOK && namespacesOK
}

// parseBlock holds the rules of the API server's ValidateIPBlock (k8s.io/kubernetes, pkg/apis/networking/validation), and refuses addresses with leading zeros and
// IPv4 in IPv6 besides, which not everybody reads in one way.
func (p *parser) parseBlock(field string, b *networkingv1.IPBlock) []netip.Prefix {
	cidr, ok := p.parseCIDR(field+".cidr", b.CIDR)
	if !ok {
		return nil
	}
	if len(b.Except) > maxPrefixes {
		p.problem(ReasonTooManyBlocks, field+".except", "%d exceptions: want at most %d; the rule permits nothing", len(b.Except), maxPrefixes)
		return nil
	}
	var except []netip.Prefix
	for i, text := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", field, i)
		e, ok := p.parseCIDR(field, text)
		if ok && (!cidr.Contains(e.Addr()) || e.Bits() <= cidr.Bits()) {
			p.problem(ReasonExceptOutside, field, "%s: want a part of %s; the rule permits nothing", e, cidr)
		}
		except = append(except, e)
	}
	out := without(cidr, except, maxCarved-p.carved)
	if p.carved += len(out); p.carved > maxCarved {
		p.problem(ReasonTooManyBlocks, field, "the policy's ipBlocks are more than %d prefixes when their exceptions are cut out; the rule permits nothing", maxCarved)
		return nil
	}
	return out
}

func (p *parser) parseCIDR(field, text string) (netip.Prefix, bool) {
	c, err := netip.ParsePrefix(text)
	if err != nil || c.Addr().Is4In6() {
		p.problem(ReasonInvalidCIDR, field, "%q: want an IPv4 or IPv6 prefix such as 192.0.2.0/24 or 2001:db8::/64; the rule permits nothing", text)
		return netip.Prefix{}, false
	}
	return c.Masked(), true
}

package policy

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A policy is an object of up to 1.5 MB, and what it comes to grows with products: of named ports and peers, of peers and pods, of what selectors say and pods. Whoever may write one in
// some namespace must not be able to take the memory and the time of a controller that serves all of them.

// extent is what rules come to.
type extent struct {
	// names are named ports, peers are selectors, prefixes are those of ipBlocks; pairs are the named ports of egress rules by the peers that have them.
	names, peers, pairs, prefixes int
	// terms are what selectors say: labels, expressions, and values of expressions. They count before peers that are equal are taken together, and are known before selectors are read.
	terms int
}

// Bounds of one policy, which no policy for people comes near.
const (
	maxRules          = 1024 // of each direction
	maxNames          = 256
	maxPeers          = 512
	maxPairs          = 4096
	maxTerms          = 4096
	maxPolicyPrefixes = 4 * maxPrefixes
	// maxCarved is how many prefixes are reckoned with to find out what is left of ipBlocks.
	maxCarved = 16 * maxPrefixes
)

func (r *rule) extent() extent {
	e := extent{prefixes: len(r.block.prefixes), terms: r.terms}
	for _, ps := range r.ports {
		e.names += len(ps.names)
	}
	for _, l := range r.lists {
		e.peers += len(l.classes)
	}
	if r.direction == egress {
		e.pairs = e.names * e.peers
	}
	return e
}

// fits says whether there is room in the policy for a rule; if there is none, the rule permits nothing. One that comes later may fit.
func (p *parser) fits(field string, r *rule) bool {
	e := r.extent()
	next := extent{p.used.names + e.names, p.used.peers + e.peers, p.used.pairs + e.pairs, p.used.prefixes + e.prefixes, p.used.terms + e.terms}
	const detail = "%d, with those of the rules before it %d: want at most %d in one policy; the rule permits nothing"
	before := p.wrong
	if next.names > maxNames {
		p.problem(ReasonTooManyPorts, field+".ports", "named ports: "+detail, e.names, next.names, maxNames)
	}
	if next.peers > maxPeers {
		p.problem(ReasonTooManyPeers, field, "peers with selectors: "+detail, e.peers, next.peers, maxPeers)
	}
	if next.pairs > maxPairs {
		p.problem(ReasonTooManyPorts, field, "named ports by peers with selectors: "+detail, e.pairs, next.pairs, maxPairs)
	}
	if next.prefixes > maxPolicyPrefixes {
		p.problem(ReasonTooManyBlocks, field, "prefixes of ipBlocks, their exceptions cut out: "+detail, e.prefixes, next.prefixes, maxPolicyPrefixes)
	}
	if p.wrong > before {
		return false
	}
	p.used = next
	return true
}

// termsOf is how much a selector says. There need not be one.
func termsOf(s *metav1.LabelSelector) int {
	if s == nil {
		return 0
	}
	n := len(s.MatchLabels) + len(s.MatchExpressions)
	for i := range s.MatchExpressions {
		n += len(s.MatchExpressions[i].Values)
	}
	return n
}

// readable says whether there is room in the policy for what a rule's selectors say; if there is none, they are not even read. The others of its bounds are for fits.
func (p *parser) readable(field string, peers []networkingv1.NetworkPolicyPeer, r *rule) bool {
	for i := range peers {
		r.terms += termsOf(peers[i].PodSelector) + termsOf(peers[i].NamespaceSelector)
	}
	next := p.used.terms + r.terms
	if next > maxTerms {
		p.problem(ReasonTooManyTerms, field, "labels, expressions and their values in selectors: %d, with those of spec.podSelector and of the rules before it %d: want at most %d in one policy; "+
			"the rule permits nothing", r.terms, next, maxTerms)
	}
	return next <= maxTerms
}

// maxRules is how many of a direction's rules count.
func (p *parser) maxRules(d direction, n int) int {
	if n > maxRules {
		p.problem(ReasonTooManyRules, "spec."+d.String(), "%d rules: want at most %d; those from spec.%s[%d] on permit nothing", n, maxRules, d, maxRules)
	}
	return min(n, maxRules)
}

package policy

// A policy is an object of up to 1.5 MB, and what it comes to grows with products: of named ports and peers, of peers and pods. Whoever may write one in some namespace must not be able to
// take the memory and the time of a controller that serves all of them.

// extent is what rules come to.
type extent struct {
	// names are named ports, peers are selectors, prefixes are those of ipBlocks; pairs are the named ports of egress rules by the peers that have them.
	names, peers, pairs, prefixes int
}

// Bounds of one policy, which no policy for people comes near.
const (
	maxRules          = 1024 // of each direction
	maxNames          = 256
	maxPeers          = 512
	maxPairs          = 4096
	maxPolicyPrefixes = 4 * maxPrefixes
	// maxCarved is how many prefixes are reckoned with to find out what is left of ipBlocks.
	maxCarved = 16 * maxPrefixes
)

func (r *rule) extent() extent {
	e := extent{prefixes: len(r.block.prefixes)}
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
	next := extent{p.used.names + e.names, p.used.peers + e.peers, p.used.pairs + e.pairs, p.used.prefixes + e.prefixes}
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

// maxRules is how many of a direction's rules count.
func (p *parser) maxRules(d direction, n int) int {
	if n > maxRules {
		p.problem(ReasonTooManyRules, "spec."+d.String(), "%d rules: want at most %d; those from spec.%s[%d] on permit nothing", n, maxRules, d, maxRules)
	}
	return min(n, maxRules)
}

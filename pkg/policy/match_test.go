package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// packet is what a match looks at.
type packet struct {
	inport, outport  ident.PortName // empty for what is no pod's
	src, dst         netip.Addr
	proto            string // tcp, udp, sctp, or another
	srcPort, dstPort int
	// flags of a TCP segment.
	flags int
	// ct is what connection tracking says of it.
	ct tracked
	// chassis has the ports that are resident where the ACL is evaluated.
	chassis []ident.PortName
}

// tracked is what connection tracking says of a packet: one is new, or of an established connection; rpl says that it goes against the connection's first packet.
type tracked struct {
	new, est, rpl bool
	label         int
}

// scope is what a match may name: groups and sets.
type scope struct {
	groups map[string]map[ident.PortName]bool
	sets   map[string][]netip.Prefix
}

// TCP flags (RFC 9293, 3.1).
const (
	flagSYN = 1 << 1
	flagACK = 1 << 4
)

type predicate func(*scope, *packet) bool

// parseMatch reads the part of OVN's language that doc.go documents, written from ovn-sb(5); anything else is an error. "&&" and "||" may not be mixed without
// parentheses, as in OVN.
func parseMatch(text string, s *scope) (predicate, error) {
	p := matchParser{tokens: tokens(text)}
	e, err := p.expression()
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("%q is left over", p.tokens)
	}
	for _, g := range p.groups {
		if _, ok := s.groups[g]; !ok && err == nil {
			err = fmt.Errorf("port group %q is not there", g)
		}
	}
	for _, set := range p.sets {
		if _, ok := s.sets[set]; !ok && err == nil {
			err = fmt.Errorf("address set %q is not there", set)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	return e, nil
}

// tokens splits at spaces and punctuation; operators and quoted strings are tokens.
func tokens(text string) []string {
	for _, s := range []string{"(", ")", "{", "}", ","} {
		text = strings.ReplaceAll(text, s, " "+s+" ")
	}
	return strings.Fields(text)
}

type matchParser struct {
	tokens []string
	// groups and sets that were named.
	groups, sets []string
}

func (p *matchParser) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *matchParser) next() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *matchParser) expect(want string) error {
	if got := p.next(); got != want {
		return fmt.Errorf("%q, want %q", got, want)
	}
	return nil
}

func (p *matchParser) expression() (predicate, error) {
	first, err := p.term()
	if err != nil {
		return nil, err
	}
	operator := p.peek()
	if operator != "&&" && operator != "||" {
		return first, nil
	}
	all := []predicate{first}
	for p.peek() == operator {
		p.next()
		t, err := p.term()
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return func(s *scope, k *packet) bool {
		for _, t := range all {
			if t(s, k) == (operator == "||") {
				return operator == "||"
			}
		}
		return operator == "&&"
	}, nil
}

func (p *matchParser) term() (predicate, error) {
	switch t := p.next(); t {
	case "(":
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		return e, p.expect(")")
	case "ip":
		return func(_ *scope, k *packet) bool { return k.src.IsValid() }, nil
	case "tcp", "udp", "sctp":
		return func(_ *scope, k *packet) bool { return k.proto == t }, nil
	case "ct.new":
		return func(_ *scope, k *packet) bool { return k.ct.new }, nil
	case "ct.est":
		return func(_ *scope, k *packet) bool { return k.ct.est }, nil
	case "ct.rpl":
		return func(_ *scope, k *packet) bool { return k.ct.rpl }, nil
	case "inport", "outport":
		return p.port(t)
	case "is_chassis_resident":
		return p.resident()
	case "ip4.src", "ip4.dst", "ip6.src", "ip6.dst":
		return p.address(t)
	default:
		if n, err := strconv.Atoi(t); err == nil {
			return p.portRange(n)
		}
		return p.number(t)
	}
}

func (p *matchParser) port(field string) (predicate, error) {
	if err := p.expect("=="); err != nil {
		return nil, err
	}
	group, ok := strings.CutPrefix(p.next(), "@")
	if !ok {
		return nil, fmt.Errorf("%s: want a port group", field)
	}
	p.groups = append(p.groups, group)
	if field == "inport" {
		return func(s *scope, k *packet) bool { return s.groups[group][k.inport] }, nil
	}
	return func(s *scope, k *packet) bool { return s.groups[group][k.outport] }, nil
}

func (p *matchParser) resident() (predicate, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	name, err := strconv.Unquote(p.next())
	if err != nil {
		return nil, err
	}
	return func(_ *scope, k *packet) bool { return slices.Contains(k.chassis, ident.PortName(name)) }, p.expect(")")
}

func (p *matchParser) address(field string) (predicate, error) {
	if err := p.expect("=="); err != nil {
		return nil, err
	}
	family, side, _ := strings.Cut(field, ".")
	of := func(k *packet) (netip.Addr, bool) {
		a := k.src
		if side == "dst" {
			a = k.dst
		}
		return a, a.Is4() == (family == "ip4")
	}
	text := p.next()
	if set, ok := strings.CutPrefix(text, "$"); ok {
		p.sets = append(p.sets, set)
		return func(s *scope, k *packet) bool {
			a, ok := of(k)
			return ok && slices.ContainsFunc(s.sets[set], func(p netip.Prefix) bool { return p.Contains(a) })
		}, nil
	}
	want, err := netip.ParseAddr(text)
	return func(_ *scope, k *packet) bool {
		a, ok := of(k)
		return ok && a == want
	}, err
}

// field is a number of a packet: a port of a protocol, TCP's SYN, the connection's label.
func field(name string) (func(*packet) (int, bool), error) {
	switch name {
	case "tcp.flags[1]": // SYN, ovs-fields(7)
		return func(k *packet) (int, bool) { return k.flags >> 1 & 1, k.proto == "tcp" }, nil
	case "ct_label.label":
		return func(k *packet) (int, bool) { return k.ct.label, true }, nil
	}
	proto, side, _ := strings.Cut(name, ".")
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) || side != "src" && side != "dst" {
		return nil, fmt.Errorf("unknown field %q", name)
	}
	return func(k *packet) (int, bool) {
		if side == "src" {
			return k.srcPort, k.proto == proto
		}
		return k.dstPort, k.proto == proto
	}, nil
}

func (p *matchParser) number(name string) (predicate, error) {
	of, err := field(name)
	if err != nil {
		return nil, err
	}
	if err := p.expect("=="); err != nil {
		return nil, err
	}
	var want []int
	list := p.peek() == "{"
	if list {
		p.next()
	}
	for {
		n, err := strconv.Atoi(p.next())
		if err != nil {
			return nil, err
		}
		want = append(want, n)
		if !list {
			break
		}
		if sep := p.next(); sep == "}" {
			break
		} else if sep != "," {
			return nil, fmt.Errorf("%q in a list of numbers", sep)
		}
	}
	return func(_ *scope, k *packet) bool {
		n, ok := of(k)
		return ok && slices.Contains(want, n)
	}, nil
}

func (p *matchParser) portRange(low int) (predicate, error) {
	if err := p.expect("<="); err != nil {
		return nil, err
	}
	of, err := field(p.next())
	if err != nil {
		return nil, err
	}
	if err := p.expect("<="); err != nil {
		return nil, err
	}
	high, err := strconv.Atoi(p.next())
	return func(_ *scope, k *packet) bool {
		n, ok := of(k)
		return ok && low <= n && n <= high
	}, err
}

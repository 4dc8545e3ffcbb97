package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Spec is a checked description of a range of addresses: what may be given out, and what may not.
type Spec struct {
	// CIDRs are masked prefixes, at most one per family, IPv4 first.
	CIDRs []netip.Prefix
	// Gateways are the router's addresses, one for each of CIDRs, in the same order.
	Gateways []netip.Addr
	// Exclude are ranges that are not allocated. Whoever has an address there already keeps it.
	Exclude []Range
}

// Range is the addresses from First to Last, both included.
type Range struct{ First, Last netip.Addr }

// ParseSpec reads the text forms of a Subnet's fields. Without gateways the first address of each range is the gateway. The error names every
// field that is wrong.
func ParseSpec(cidrs, gateways, exclude []string) (Spec, error) {
	prefixes, err := ParseCIDRs(cidrs)
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{CIDRs: prefixes}
	var errs []error
	for _, c := range spec.CIDRs {
		g, err := gatewayFor(c, gateways)
		if err != nil {
			errs = append(errs, err)
		}
		spec.Gateways = append(spec.Gateways, g)
	}
	if len(gateways) != 0 && len(gateways) != len(cidrs) {
		errs = append(errs, fmt.Errorf("gateways: %d given for %d cidrs, want one each or none", len(gateways), len(cidrs)))
	}
	for _, e := range exclude {
		r, err := parseRange(e, spec.CIDRs)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		spec.Exclude = append(spec.Exclude, r)
	}
	if err := errors.Join(errs...); err != nil {
		return Spec{}, err
	}
	return spec, nil
}

// ParseCIDRs reads one or two prefixes of different families and returns them IPv4 first.
func ParseCIDRs(cidrs []string) ([]netip.Prefix, error) {
	if len(cidrs) == 0 || len(cidrs) > 2 {
		return nil, fmt.Errorf("cidrs: %d given, want one per family", len(cidrs))
	}
	var out []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		switch {
		case err != nil:
			return nil, fmt.Errorf("cidrs: %w", err)
		case p != p.Masked():
			return nil, fmt.Errorf("cidrs: %s has host bits set, want %s", c, p.Masked())
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("cidrs: %s is IPv4 written as IPv6", c)
		case p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 30):
			return nil, fmt.Errorf("cidrs: %s: an IPv4 cidr must be between /8 and /30", c)
		case p.Addr().Is6() && (p.Bits() < 16 || p.Bits() > 126):
			return nil, fmt.Errorf("cidrs: %s: an IPv6 cidr must be between /16 and /126", c)
		}
		out = append(out, p)
	}
	if len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		return nil, fmt.Errorf("cidrs: %s and %s are of one family, want one per family", out[0], out[1])
	}
	if len(out) == 2 && out[1].Addr().Is4() {
		out[0], out[1] = out[1], out[0]
	}
	return out, nil
}

func gatewayFor(cidr netip.Prefix, gateways []string) (netip.Addr, error) {
	if len(gateways) == 0 {
		return cidr.Addr().Next(), nil
	}
	for _, g := range gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("gateways: %w", err)
		}
		if cidr.Contains(a) {
			if a == cidr.Addr() || a == Last(cidr) && a.Is4() {
				return netip.Addr{}, fmt.Errorf("gateways: %s is the network or broadcast address of %s", a, cidr)
			}
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("gateways: none of %s is in %s", strings.Join(gateways, ", "), cidr)
}

func parseRange(s string, cidrs []netip.Prefix) (Range, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := netip.ParseAddr(first)
	if err != nil {
		return Range{}, fmt.Errorf("excludeIPs: %w", err)
	}
	b, err := netip.ParseAddr(last)
	if err != nil {
		return Range{}, fmt.Errorf("excludeIPs: %w", err)
	}
	if b.Less(a) {
		return Range{}, fmt.Errorf("excludeIPs: %s ends before it starts", s)
	}
	for _, c := range cidrs {
		if c.Contains(a) && c.Contains(b) {
			return Range{First: a, Last: b}, nil
		}
	}
	return Range{}, fmt.Errorf("excludeIPs: %s is not within one of the cidrs", s)
}

// Last is the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Overlap returns the first pair of prefixes, one of each list, that share addresses; ok is false when there is none.
func Overlap(a, b []netip.Prefix) (x, y netip.Prefix, ok bool) {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				return x, y, true
			}
		}
	}
	return netip.Prefix{}, netip.Prefix{}, false
}

// Holds says whether a prefix has an address that somebody of the range has or may be given: one within it that is not excluded, or a gateway.
func (s Spec) Holds(p netip.Prefix) bool {
	p = p.Masked()
	for _, c := range s.CIDRs {
		if !c.Overlaps(p) {
			continue
		}
		excluded := slices.ContainsFunc(s.Exclude, func(r Range) bool { return !p.Addr().Less(r.First) && !r.Last.Less(Last(p)) })
		if !excluded || slices.ContainsFunc(s.Gateways, p.Contains) {
			return true
		}
	}
	return false
}

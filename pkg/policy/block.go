package policy

import (
	"math"
	"net/netip"
	"slices"
)

// Sets of addresses as sorted lists of prefixes, none of which holds another. An exception of n bits more than its prefix leaves n prefixes.

// without is what is left of a prefix when others are cut out of it; where that is more than limit, some of it, which is more than limit.
func without(p netip.Prefix, holes []netip.Prefix, limit int) []netip.Prefix {
	return carve(nil, p, holes, limit)
}

// carve appends what is left of a prefix to out, until that is longer than limit.
func carve(out []netip.Prefix, p netip.Prefix, holes []netip.Prefix, limit int) []netip.Prefix {
	if len(out) > limit {
		return out
	}
	var inside []netip.Prefix
	for _, h := range holes {
		if h.Bits() <= p.Bits() && h.Contains(p.Addr()) {
			return out
		}
		if p.Overlaps(h) {
			inside = append(inside, h)
		}
	}
	if len(inside) == 0 {
		return append(out, p)
	}
	low, high := halves(p)
	return carve(carve(out, low, inside, limit), high, inside, limit)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	low = netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	addr, _ := netip.AddrFromSlice(b)
	return low, netip.PrefixFrom(addr, p.Bits()+1)
}

// union sorts prefixes, drops those that another holds, and joins halves.
func union(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare) // IPv4 first, by address, the larger one first
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
		for n := len(out); n > 1 && out[n-1].Bits() > 0 && out[n-2].Bits() == out[n-1].Bits(); n = len(out) {
			parent := netip.PrefixFrom(out[n-2].Addr(), out[n-2].Bits()-1).Masked()
			if parent.Addr() != out[n-2].Addr() || !parent.Contains(out[n-1].Addr()) {
				break
			}
			out = append(out[:n-2], parent)
		}
	}
	return out
}

// cut is what is left of prefixes when holes are cut out of all of them.
func cut(prefixes, holes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		out = append(out, without(p, holes, math.MaxInt)...)
	}
	return union(out)
}

// holds says whether an address is in one of sorted, disjoint prefixes.
func holds(prefixes []netip.Prefix, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(prefixes, a, func(p netip.Prefix, a netip.Addr) int {
		if c := p.Addr().Compare(a); c > 0 {
			return c
		}
		if p.Contains(a) {
			return 0
		}
		return -1
	})
	return found && prefixes[i].Contains(a)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// element is how a member of an address set is written.
func element(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

package ipam

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// maxWindow bounds the addresses of one family that a pool gives out by itself: the first 2^24 of the range. An IPv6 /64 has more than any cluster needs, and
// a bitmap of the window costs 2 MiB; a family has two. Of those beyond it an owner gets the one that it asks for.
const maxWindow = 1 << 24

// family is the addresses of one prefix as bitmaps over offsets from the network address.
type family struct {
	cidr    netip.Prefix
	gateway netip.Addr
	size    int64                   // offsets in the window
	taken   []uint64                // offsets that somebody has
	barred  []uint64                // offsets that are not given out; somebody may have one from before it was excluded
	far     map[netip.Addr]struct{} // addresses beyond the window that somebody has
	exclude []Range
	left    int64 // offsets that are neither
	used    int64
	cursor  int64 // where the search for the next free offset starts: after the last one given out
}

func newFamily(cidr netip.Prefix, gateway netip.Addr, exclude []Range) *family {
	size := int64(maxWindow)
	if host := cidr.Addr().BitLen() - cidr.Bits(); host < 24 {
		size = 1 << host
	}
	n := (size + 63) / 64
	f := &family{cidr: cidr, gateway: gateway, size: size, taken: make([]uint64, n), barred: make([]uint64, n), far: map[netip.Addr]struct{}{}, exclude: exclude, left: size}
	f.bar(0) // the network address; in IPv6 the subnet-router anycast address (RFC 4291, 2.6.1)
	if cidr.Addr().Is4() {
		f.barAddr(Last(cidr)) // broadcast
	}
	f.barAddr(gateway)
	for _, r := range exclude {
		if cidr.Contains(r.First) {
			first, last := f.clamp(r)
			for o := first; o <= last; o++ {
				f.bar(o)
			}
		}
	}
	for o := size; o < n*64; o++ { // the tail of the last word is no address
		f.barred[o/64] |= 1 << (o % 64)
	}
	return f
}

// clamp returns the part of r that is inside the window; first > last when there is none.
func (f *family) clamp(r Range) (first, last int64) {
	first, ok := f.offset(r.First)
	if !ok {
		return 1, 0
	}
	if last, ok = f.offset(r.Last); !ok {
		last = f.size - 1
	}
	return first, last
}

func (f *family) barAddr(a netip.Addr) {
	if o, ok := f.offset(a); ok {
		f.bar(o)
	}
}

func (f *family) bar(o int64) {
	if !has(f.barred, o) {
		f.barred[o/64] |= 1 << (o % 64)
		f.left--
	}
}

// offset is a's distance from the network address; ok is false outside the window.
func (f *family) offset(a netip.Addr) (o int64, ok bool) {
	if !f.cidr.Contains(a) {
		return 0, false
	}
	hi, lo := halves(a)
	baseHi, baseLo := halves(f.cidr.Addr())
	d, borrow := bits.Sub64(lo, baseLo, 0)
	if up, _ := bits.Sub64(hi, baseHi, borrow); up != 0 || d >= uint64(f.size) {
		return 0, false
	}
	return int64(d), true
}

// addr is the inverse of offset.
func (f *family) addr(o int64) netip.Addr {
	b := f.cidr.Addr().As16()
	lo, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), uint64(o), 0)
	binary.BigEndian.PutUint64(b[8:], lo)
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+carry)
	a := netip.AddrFrom16(b)
	if f.cidr.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// next finds a free address at or after the cursor, wrapping around once.
func (f *family) next() (netip.Addr, bool) {
	n := int64(len(f.taken))
	start := f.cursor / 64 % n
	for i := int64(0); i <= n; i++ {
		w := (start + i) % n
		free := ^(f.taken[w] | f.barred[w])
		if i == 0 {
			free &= ^uint64(0) << (f.cursor % 64) // the part of the first word before the cursor comes last, with i == n
		}
		if free != 0 {
			return f.addr(w*64 + int64(bits.TrailingZeros64(free))), true
		}
	}
	return netip.Addr{}, false
}

// free says why a cannot be given out now; nil if it can.
func (f *family) free(a netip.Addr) error {
	excluded := slices.ContainsFunc(f.exclude, func(r Range) bool { return !a.Less(r.First) && !r.Last.Less(a) })
	if f.reserved(a) || excluded {
		return fmt.Errorf("%w: %s is not an address of %s that can be given out", ErrOutOfRange, a, f.cidr)
	}
	return f.untaken(a)
}

// claimable says why nobody can have a already; nil if somebody may. Being excluded is no reason: that says what is given out from now on.
func (f *family) claimable(a netip.Addr) error {
	if f.reserved(a) {
		return fmt.Errorf("%w: %s is not an address of %s that anybody can have", ErrOutOfRange, a, f.cidr)
	}
	return f.untaken(a)
}

// reserved says whether nobody can have a: it is not of the range, its network or broadcast address, or the gateway.
func (f *family) reserved(a netip.Addr) bool {
	return !f.cidr.Contains(a) || a == f.cidr.Addr() || a == f.gateway || a.Is4() && a == Last(f.cidr)
}

func (f *family) untaken(a netip.Addr) error {
	_, taken := f.far[a]
	if o, near := f.offset(a); taken || near && has(f.taken, o) {
		return fmt.Errorf("%w: %s", ErrTaken, a)
	}
	return nil
}

func (f *family) take(a netip.Addr) {
	f.used++
	o, near := f.offset(a)
	if !near {
		f.far[a] = struct{}{}
		return
	}
	f.taken[o/64] |= 1 << (o % 64)
	if !has(f.barred, o) {
		f.left--
		f.cursor = (o + 1) % f.size
	}
}

func (f *family) put(a netip.Addr) {
	f.used--
	o, near := f.offset(a)
	if !near {
		delete(f.far, a)
		return
	}
	f.taken[o/64] &^= 1 << (o % 64)
	if !has(f.barred, o) {
		f.left++
	}
}

// has says whether a bitmap has the bit of an offset.
func has(bitmap []uint64, o int64) bool { return bitmap[o/64]&(1<<(o%64)) != 0 }

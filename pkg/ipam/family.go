package ipam

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// maxWindow bounds the addresses of one family that a pool gives out: the first 2^24 of the range. An IPv6 /64 has more than any cluster needs, and
// a bitmap of the window costs 2 MiB.
const maxWindow = 1 << 24

// family is the addresses of one prefix as a bitmap over offsets from the network address.
type family struct {
	cidr     netip.Prefix
	size     int64 // offsets in the window
	words    []uint64
	reserved int64    // offsets that are never given out
	barred   []uint64 // the reserved offsets, to tell them from taken ones
	used     int64
	cursor   int64 // where the search for the next free offset starts: after the last one given out
}

func newFamily(cidr netip.Prefix, gateway netip.Addr, exclude []Range) *family {
	size := int64(maxWindow)
	if host := cidr.Addr().BitLen() - cidr.Bits(); host < 24 {
		size = 1 << host
	}
	n := (size + 63) / 64
	f := &family{cidr: cidr, size: size, words: make([]uint64, n), barred: make([]uint64, n)}
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
		f.words[o/64] |= 1 << (o % 64)
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
	if bit := uint64(1) << (o % 64); f.barred[o/64]&bit == 0 {
		f.barred[o/64] |= bit
		f.words[o/64] |= bit
		f.reserved++
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
	n := int64(len(f.words))
	start := f.cursor / 64 % n
	for i := int64(0); i <= n; i++ {
		w := (start + i) % n
		free := ^f.words[w]
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
	o, ok := f.offset(a)
	if !ok || f.barred[o/64]&(1<<(o%64)) != 0 {
		return fmt.Errorf("%w: %s is not an address of %s that can be given out", ErrOutOfRange, a, f.cidr)
	}
	if f.words[o/64]&(1<<(o%64)) != 0 {
		return fmt.Errorf("%w: %s", ErrTaken, a)
	}
	return nil
}

func (f *family) take(a netip.Addr) {
	o, _ := f.offset(a)
	f.words[o/64] |= 1 << (o % 64)
	f.used++
	f.cursor = (o + 1) % f.size
}

func (f *family) put(a netip.Addr) {
	o, _ := f.offset(a)
	f.words[o/64] &^= 1 << (o % 64)
	f.used--
}

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Errors that a caller tells apart with errors.Is.
var (
	// ErrFull: no address is left in one of the families.
	ErrFull = errors.New("no address left")
	// ErrTaken: another owner has the address.
	ErrTaken = errors.New("address taken")
	// ErrOutOfRange: the address cannot be given out by this pool.
	ErrOutOfRange = errors.New("address not in the range")
)

// Pool hands out the addresses of a Spec: one per family to each owner. The zero value is not usable; see New.
type Pool struct {
	spec     Spec
	families []*family
	owned    map[string][]netip.Addr
}

// New returns an empty pool.
func New(spec Spec) *Pool {
	p := &Pool{spec: spec, owned: map[string][]netip.Addr{}}
	for i, c := range spec.CIDRs {
		p.families = append(p.families, newFamily(c, spec.Gateways[i], spec.Exclude))
	}
	return p
}

// Spec is what the pool was made from.
func (p *Pool) Spec() Spec { return p.spec }

// Allocate gives owner one address per family, in the order of Spec.CIDRs, with the prefix length of the range: those that are wanted, and any in a family
// of which none is. An owner that has addresses gets the same again. Addresses that were released last are reused last. The error wraps ErrFull, ErrTaken or
// ErrOutOfRange and names the address; then nothing was allocated.
func (p *Pool) Allocate(owner string, wanted ...netip.Addr) ([]netip.Prefix, error) {
	if _, ok := p.owned[owner]; ok {
		return p.Of(owner), nil
	}
	addrs := make([]netip.Addr, len(p.families))
	for _, w := range wanted {
		i := slices.IndexFunc(p.families, func(f *family) bool { return f.cidr.Contains(w) })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s is in none of %v", ErrOutOfRange, w, p.spec.CIDRs)
		}
		if addrs[i].IsValid() {
			return nil, fmt.Errorf("%w: %s and %s are of one family", ErrOutOfRange, addrs[i], w)
		}
		if err := p.families[i].free(w); err != nil {
			return nil, err
		}
		addrs[i] = w
	}
	for i, f := range p.families {
		if addrs[i].IsValid() {
			continue
		}
		var ok bool
		if addrs[i], ok = f.next(); !ok {
			return nil, fmt.Errorf("%s: %w: all %d addresses are in use", f.cidr, ErrFull, f.used)
		}
	}
	p.take(owner, addrs)
	return p.Of(owner), nil
}

// Claim gives owner just these addresses: what an annotation or an NB row says that it already has. There must be one for each family. An excluded address
// can be claimed: who has one keeps it. The error wraps ErrTaken or ErrOutOfRange and names the address; then nothing was allocated. Claiming what one has
// succeeds.
func (p *Pool) Claim(owner string, addrs []netip.Addr) error {
	if len(addrs) != len(p.families) {
		return fmt.Errorf("%w: %d addresses given, want one in each of %v", ErrOutOfRange, len(addrs), p.spec.CIDRs)
	}
	if has := p.owned[owner]; has != nil {
		for i := range has {
			if has[i] != addrs[i] {
				return fmt.Errorf("%w: %s already has %v", ErrTaken, owner, has)
			}
		}
		return nil
	}
	for i, f := range p.families {
		if err := f.claimable(addrs[i]); err != nil {
			return err
		}
	}
	p.take(owner, slices.Clone(addrs))
	return nil
}

func (p *Pool) take(owner string, addrs []netip.Addr) {
	for i, f := range p.families {
		f.take(addrs[i])
	}
	p.owned[owner] = addrs
}

// Release takes owner's addresses back, if it has any.
func (p *Pool) Release(owner string) {
	for i, a := range p.owned[owner] {
		p.families[i].put(a)
	}
	delete(p.owned, owner)
}

// Of is what owner has, nil for an owner that has nothing.
func (p *Pool) Of(owner string) []netip.Prefix {
	var out []netip.Prefix
	for i, a := range p.owned[owner] {
		out = append(out, netip.PrefixFrom(a, p.spec.CIDRs[i].Bits()))
	}
	return out
}

// With returns a pool for another description of the same ranges, with every owner keeping what it has, also what is excluded from now on. The error names the
// owners whose addresses are in no range of the new description, or have become a gateway.
func (p *Pool) With(spec Spec) (*Pool, error) {
	next := New(spec)
	var errs []error
	for owner, addrs := range p.owned {
		if err := next.Claim(owner, addrs); err != nil {
			errs = append(errs, fmt.Errorf("%s has %v: %w", owner, addrs, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return next, nil
}

// Usage counts the addresses of the scarcer family: those that somebody has, and those that can still be given out.
func (p *Pool) Usage() (used, available int64) {
	for i, f := range p.families {
		if i == 0 || f.left < available {
			used, available = f.used, f.left
		}
	}
	return used, available
}

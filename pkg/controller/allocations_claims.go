package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/ipam"
)

// holderClaim is the kind of a holder that is an IPAMClaim: it has its addresses while no pod uses them, so that nobody else gets them.
const holderClaim = "ipamclaim"

// ipamClaim is an IPAMClaim. It has no addresses before its first pod has.
type ipamClaim struct {
	key types.NamespacedName
	uid types.UID
	ips []netip.Addr
}

func (c ipamClaim) holder() holder { return holder{kind: holderClaim, key: c.key} }

// claims are the IPAMClaims that have addresses, and the pods' interfaces that use them.
type claims struct {
	has  map[types.NamespacedName]ipamClaim
	lent map[holder]types.NamespacedName
	// list reads the IPAMClaims that have addresses; may says whether a namespace's may have some in a Subnet.
	list func(ctx context.Context) ([]ipamClaim, error)
	may  func(ctx context.Context, namespace, subnet string) bool
}

func newClaims() claims {
	return claims{
		has: map[types.NamespacedName]ipamClaim{}, lent: map[holder]types.NamespacedName{},
		list: func(context.Context) ([]ipamClaim, error) { return nil, nil }, may: func(context.Context, string, string) bool { return false },
	}
}

// restoreClaims puts into a new pool what IPAMClaims have in its Subnet. What a pod has by one is the pod's, until it goes.
func (a *allocations) restoreClaims(ctx context.Context, subnet string, pool *ipam.Pool) error {
	all, err := a.claims.list(ctx)
	if err != nil {
		return fmt.Errorf("list IPAMClaims to restore their addresses: %w", err)
	}
	for _, c := range all {
		if !within(c.ips, pool.Spec()) || !a.claims.may(ctx, c.key.Namespace, subnet) {
			continue
		}
		a.claims.has[c.key] = c
		if pool.Claim(c.holder().owner(c.uid), c.ips) == nil {
			a.held[c.holder()] = holding{uid: c.uid, subnet: subnet}
		}
	}
	return nil
}

func within(ips []netip.Addr, spec ipam.Spec) bool {
	return len(ips) > 0 && !slices.ContainsFunc(ips, func(ip netip.Addr) bool {
		return !slices.ContainsFunc(spec.CIDRs, func(c netip.Prefix) bool { return c.Contains(ip) })
	})
}

// setClaim keeps the addresses of an IPAMClaim for it. The error says why they cannot be kept; then they are kept for nobody.
func (a *allocations) setClaim(ctx context.Context, c ipamClaim) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.claims.has[c.key]; ok && (old.uid != c.uid || !slices.Equal(old.ips, c.ips)) {
		a.forgetClaim(c.key)
	}
	for subnet, pool := range a.pools {
		if !within(c.ips, pool.Spec()) {
			continue
		}
		if !a.claims.may(ctx, c.key.Namespace, subnet) {
			return fmt.Errorf("Subnet %s is not for namespace %s", subnet, c.key.Namespace)
		}
		a.claims.has[c.key] = c
		return a.keepClaim(c.key)
	}
	return nil // a Subnet that comes takes it in
}

// claimed is an IPAMClaim as it is known here, which may be ahead of the API.
func (a *allocations) claimed(key types.NamespacedName) (ipamClaim, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.claims.has[key]
	return c, ok
}

// dropClaim lets the addresses of an IPAMClaim go that is gone; those that a pod uses with the pod.
func (a *allocations) dropClaim(key types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetClaim(key)
}

func (a *allocations) forgetClaim(key types.NamespacedName) {
	c := a.claims.has[key]
	delete(a.claims.has, key)
	if has, ok := a.held[c.holder()]; ok {
		a.free(c.holder(), has)
	}
}

// consult asks for what an IPAMClaim has got since it was read: of pods that wait for a new one, one is the first.
func (a *allocations) consult(ask *request) {
	if c, ok := a.claims.has[ask.claim.key]; ok && c.uid == ask.claim.uid && len(ask.claim.ips) == 0 {
		ask.claim.ips, ask.wanted = c.ips, c.ips
	}
}

// borrower is the pod's interface that has an IPAMClaim's addresses.
func (a *allocations) borrower(key types.NamespacedName) (holder, bool) {
	if key.Name == "" {
		return holder{}, false
	}
	for h, lent := range a.claims.lent {
		if lent == key {
			return h, true
		}
	}
	return holder{}, false
}

// lend notes that a pod's interface has its addresses by an IPAMClaim, which has none, or these. One that has others has them by none.
func (a *allocations) lend(h holder, c ipamClaim, ips []netip.Prefix) {
	if c.key.Name == "" {
		return
	}
	addrs := addrsOf(ips)
	if len(c.ips) > 0 && !slices.Equal(c.ips, addrs) {
		if a.claims.lent[h] == c.key { // a controller that begins goes by what the pod refers to
			delete(a.claims.lent, h)
		}
		_ = a.keepClaim(c.key) // where somebody else has them, setClaim says so
		return
	}
	c.ips = addrs
	a.claims.lent[h] = c.key
	a.claims.has[c.key] = c
}

// hasBy is the IPAMClaim by which a pod's interface has its addresses, the zero value if by none.
func (a *allocations) hasBy(h holder) types.NamespacedName {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.claims.lent[h]
}

// borrow lets a pod have what an IPAMClaim keeps in a pool.
func (a *allocations) borrow(key types.NamespacedName, pool *ipam.Pool) {
	h := holder{kind: holderClaim, key: key}
	if has, ok := a.held[h]; ok && a.pools[has.subnet] == pool {
		pool.Release(h.owner(has.uid))
		delete(a.held, h)
	}
}

// giveBack is what becomes of the addresses of a pod's interface that had them by an IPAMClaim.
func (a *allocations) giveBack(h holder) {
	if key, ok := a.claims.lent[h]; ok {
		delete(a.claims.lent, h)
		_ = a.keepClaim(key) // they were free a moment ago, unless the pod had others
	}
}

// keepClaim has an IPAMClaim keep its addresses, unless a pod uses them, or there is none of that name.
func (a *allocations) keepClaim(key types.NamespacedName) error {
	c, ok := a.claims.has[key]
	if _, held := a.held[c.holder()]; !ok || held {
		return nil
	}
	if _, ok := a.borrower(key); ok {
		return nil
	}
	for subnet, pool := range a.pools {
		if !within(c.ips, pool.Spec()) {
			continue
		}
		if err := pool.Claim(c.holder().owner(c.uid), c.ips); err != nil {
			return fmt.Errorf("Subnet %s: %w", subnet, err)
		}
		a.held[c.holder()] = holding{uid: c.uid, subnet: subnet}
	}
	return nil
}

package netdev

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// Affinity. What a frontend with affinity has for itself: a map of clients to the address of the backend that they got, one for each port that its backends have (nft 1.0.6
// cannot learn longer values than an IPv6 address), a chain that looks there before it lets one be picked, and a chain that remembers. If clients outside have backends of
// their own the same for them.

// maxAffinities bounds the clients that are remembered for each frontend. One that is not goes to any backend.
const maxAffinities = 1 << 16

// prefixes of the names of objects that a frontend has for itself.
const (
	prefixStick    = "stick-"
	prefixNote     = "note-"
	prefixAffinity = "affinity-"
)

// id is the frontend in names of nftables, which have no colons.
func (f Frontend) id() string {
	return strings.ReplaceAll(f.Addr.String(), ":", ".") + "-" + string(f.Protocol) + "-" + strconv.Itoa(int(f.Port))
}

func (f Frontend) stickChain(side string) string { return side + prefixStick + f.id() }
func (f Frontend) noteChain() string             { return prefixNote + f.id() }
func (f Frontend) affinityMap(side string, port uint16) string {
	return side + prefixAffinity + f.id() + "-" + strconv.Itoa(int(port))
}

// choices are those of a Balance by their side.
func (b Balance) choices() map[string]Choice {
	out := map[string]Choice{"": b.All}
	if b.Outside != nil {
		out[outside] = *b.Outside
	}
	return out
}

// ports that backends have.
func (c Choice) ports() []uint16 {
	var out []uint16
	for _, b := range c.Backends {
		out = append(out, b.Port())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownObjects are the names of a frontend's own chains and maps.
func (f Frontend) ownObjects(b Balance) (chains, maps []string) {
	if b.Affinity == 0 {
		return nil, nil
	}
	chains = append(chains, f.noteChain())
	for side, c := range b.choices() {
		if len(c.Backends) > 0 {
			chains = append(chains, f.stickChain(side))
		}
		for _, port := range c.ports() {
			maps = append(maps, f.affinityMap(side, port))
		}
	}
	return chains, maps
}

// addSticky writes a frontend's own chains, and makes its maps.
func (b *Balancer) addSticky(tx *knftables.Transaction, f Frontend, to Balance) {
	ip := familyOf(f.version())
	var note []string
	for side, c := range to.choices() {
		var rules []string
		if mark := f.stickMark(side); mark != "" {
			rules = append(rules, "meta mark set meta mark or "+mark)
		}
		sideOf := "!="
		if side == outside {
			sideOf = "=="
		}
		for _, port := range c.ports() {
			name := f.affinityMap(side, port)
			tx.Add(&knftables.Map{
				Name: name, Type: ip.addrType + " : " + ip.addrType, Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: knftables.PtrTo(uint64(maxAffinities)),
			})
			rules = append(rules, fmt.Sprintf("meta l4proto %s dnat %[2]s to %[2]s saddr map @%s : %d", f.Protocol, ip.ip, name, port))
			note = append(note, fmt.Sprintf("meta mark and %s %s 0 %s dport %d update @%s { %[6]s saddr timeout %[7]ds : %[6]s daddr }",
				passedOn, sideOf, f.Protocol, port, name, ip.ip, int(to.Affinity/time.Second)))
		}
		if n := len(c.Backends); n > 0 {
			b.addChain(tx, f.stickChain(side), append(rules, "goto "+f.pickChain(side, n))...)
		}
	}
	b.addChain(tx, f.noteChain(), note...)
}

// stickMark is what a packet is marked with before its client's backend is looked up.
func (f Frontend) stickMark(side string) string {
	var mark uint64
	if side != outside {
		mark |= passedOnBit
	}
	if f.onHost() {
		mark |= onHostBit
	}
	if mark == 0 {
		return ""
	}
	return fmt.Sprintf("%#x", mark)
}

// removeOwn removes those of a frontend's own objects that it has no use for any more. Nothing leads there by now.
func removeOwn(tx *knftables.Transaction, f Frontend, before, after Balance) {
	chains, maps := f.ownObjects(before)
	keptChains, keptMaps := f.ownObjects(after)
	for _, c := range chains {
		if !slices.Contains(keptChains, c) {
			tx.Flush(&knftables.Chain{Name: c})
			tx.Delete(&knftables.Chain{Name: c})
		}
	}
	for _, m := range maps {
		if !slices.Contains(keptMaps, m) {
			tx.Delete(&knftables.Map{Name: m})
		}
	}
}

// removeLeftovers removes what an earlier process left of its frontends' own.
func (b *Balancer) removeLeftovers(ctx context.Context, tx *knftables.Transaction, next map[Frontend]Balance) error {
	kept := map[string]struct{}{}
	for f, to := range next {
		chains, maps := f.ownObjects(to)
		for _, name := range slices.Concat(chains, maps) {
			kept[name] = struct{}{}
		}
	}
	all, err := b.nft.ListAll(ctx)
	if knftables.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list what is there: %w", err)
	}
	left := func(kind string, prefixes ...string) (out []string) {
		for _, name := range all[kind] {
			_, keep := kept[name]
			bare := strings.TrimPrefix(name, outside)
			if !keep && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(bare, p) }) {
				out = append(out, name)
			}
		}
		return out
	}
	chains := left("chain", prefixStick, prefixNote)
	for _, c := range chains { // all of them first: none leads to another, but rules come before maps
		tx.Flush(&knftables.Chain{Name: c})
		tx.Delete(&knftables.Chain{Name: c})
	}
	for _, m := range left("map", prefixAffinity) {
		tx.Delete(&knftables.Map{Name: m})
	}
	return nil
}

// pruneAttempts bounds how often affinities are looked through again because one of them has come to its own end meanwhile.
const pruneAttempts = 3

// maxPruned bounds the frontends whose affinities are looked through at once: each map is a run of nft. With more of them, as when an agent starts in a big cluster, all are
// forgotten instead.
const maxPruned = 500

// tidyAffinity forgets at least which clients of some frontends got a backend that is none any more.
func (b *Balancer) tidyAffinity(ctx context.Context, of map[Frontend]struct{}) error {
	if len(of) <= maxPruned {
		return b.pruneAffinity(ctx, of)
	}
	return b.flushAffinity(ctx, of)
}

func (b *Balancer) flushAffinity(ctx context.Context, of map[Frontend]struct{}) error {
	tx := b.nft.NewTransaction()
	for f := range of {
		_, maps := f.ownObjects(b.have[f])
		for _, m := range maps {
			tx.Flush(&knftables.Map{Name: m})
		}
	}
	if err := b.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("forget all affinities: %w", err)
	}
	return nil
}

// pruneAffinity forgets which clients of some frontends got a backend that is none any more; where affinities end by themselves all the time meanwhile, all of them.
func (b *Balancer) pruneAffinity(ctx context.Context, of map[Frontend]struct{}) error {
	for range pruneAttempts {
		tx := b.nft.NewTransaction()
		for f := range of {
			if err := b.prune(ctx, tx, f); err != nil {
				return err
			}
		}
		if tx.NumOperations() == 0 {
			return nil
		}
		err := b.nft.Run(ctx, tx)
		if err == nil {
			return nil
		}
		if !knftables.IsNotFound(err) {
			return fmt.Errorf("forget affinities: %w", err)
		}
	}
	return b.flushAffinity(ctx, of)
}

func (b *Balancer) prune(ctx context.Context, tx *knftables.Transaction, f Frontend) error {
	to := b.have[f]
	if to.Affinity == 0 {
		return nil
	}
	for side, c := range to.choices() {
		for _, port := range c.ports() {
			name := f.affinityMap(side, port)
			remembered, err := b.nft.ListElements(ctx, "map", name)
			if err != nil {
				return fmt.Errorf("list map %s: %w", name, err)
			}
			for _, e := range remembered {
				addr, err := netip.ParseAddr(strings.Join(e.Value, ""))
				if err != nil || !slices.Contains(c.Backends, netip.AddrPortFrom(addr, port)) {
					tx.Delete(&knftables.Element{Map: name, Key: e.Key})
				}
			}
		}
	}
	return nil
}

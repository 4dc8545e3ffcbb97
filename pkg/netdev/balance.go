package netdev

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"sigs.k8s.io/knftables"
)

// balanceTable is the nftables table of a Balancer, in the inet family. It is not the table of Masquerade: each is replaced without the other.
const balanceTable = "godwit-services"

// Frontend is where clients connect to.
type Frontend struct {
	// Addr is an address, or the unspecified one of a family: all of the host's own, but for loopback and those of the gateway.
	Addr netip.Addr
	// Protocol is tcp, udp or sctp.
	Protocol Protocol
	Port     uint16
}

func (f Frontend) compare(o Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Port, o.Port), cmp.Compare(f.Protocol, o.Protocol))
}

// Protocol is a transport protocol as nftables writes it.
type Protocol string

// The protocols that can be balanced.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

func protocols() []Protocol { return []Protocol{TCP, UDP, SCTP} }

// Choice is a set of backends, of which each connection goes to one at random.
type Choice struct {
	// Backends are of the family of the Frontend.
	Backends []netip.AddrPort
	// Silent: if there are no Backends connections are dropped; else they are refused.
	Silent bool
}

// Balance is what becomes of connections to a Frontend.
type Balance struct {
	// All is for what the host itself sends, for what comes by the gateway, and for the rest if Outside is nil. Its backends see an address of the host.
	All Choice
	// Outside is for everybody else; its backends see the client's address. What they answer must come back by this host.
	Outside *Choice
	// Affinity is how long a client's connections go to the same backend after the last was made; 0 if each goes to any.
	Affinity time.Duration
	// Sources are from where clients may connect; nil if from anywhere.
	Sources []netip.Prefix
}

// Passage is how connections pass the host.
type Passage struct {
	// Gateway is the link towards the overlay.
	Gateway string
	// Own are the addresses, one of each family, under which backends behind the gateway see what the host itself sends.
	Own []netip.Addr
	// Clients are those under which they see clients that the host passes on, one for each of Own.
	Clients []netip.Addr
}

// Balancer keeps the nftables table inet godwit-services, which sends connections to Frontends to their backends. It has one user at a time, but for Doubt.
//
// A change of one backend is a change of a few elements of maps: a frontend with N backends leads to a chain that picks one of N, which all frontends of the size share, and the
// number that it draws is part of the key by which it finds the backend.
type Balancer struct {
	host Host
	// open opens nftables at the first Write; tests have another.
	open func() (knftables.Interface, error)
	nft  knftables.Interface

	passage Passage
	want    map[Frontend]Balance
	// dirty are the frontends that may be written otherwise than they are wanted.
	dirty map[Frontend]struct{}
	// have is what is written, with its backends in the order of their numbers.
	have map[Frontend]Balance
	// datagrams are the frontends of UDP that connections may be left of which lead where they should not.
	datagrams map[Frontend]struct{}
	// chains are those that have been made for a frontend's sake.
	chains map[string]struct{}
	// lost: what the table has is not known. doubted: it may be gone.
	lost, doubted atomic.Bool
}

// NewBalancer makes one that has no Frontends. Nothing is written before Write.
func (h Host) NewBalancer() *Balancer {
	b := &Balancer{host: h, want: map[Frontend]Balance{}, dirty: map[Frontend]struct{}{}, datagrams: map[Frontend]struct{}{}, open: func() (knftables.Interface, error) {
		return knftables.New(knftables.InetFamily, balanceTable)
	}}
	b.forget()
	return b
}

// forget makes the next Write replace the whole table.
func (b *Balancer) forget() { b.lost.Store(true) }

// Doubt makes the next Write look whether the table is still there: somebody has deleted one. It may be called at any time.
func (b *Balancer) Doubt() { b.doubted.Store(true) }

// SetPassage says how connections pass the host.
func (b *Balancer) SetPassage(p Passage) {
	if p.Gateway != b.passage.Gateway || !slices.Equal(p.Own, b.passage.Own) || !slices.Equal(p.Clients, b.passage.Clients) {
		b.passage = p
		b.forget()
	}
}

// Set says what becomes of connections to a Frontend, which must not be changed later.
func (b *Balancer) Set(f Frontend, to Balance) {
	b.want[f] = to
	b.dirty[f] = struct{}{}
}

// Delete says that a Frontend is none any more.
func (b *Balancer) Delete(f Frontend) {
	delete(b.want, f)
	b.dirty[f] = struct{}{}
}

// Write writes what has changed since the last one, in one transaction, or the whole table; wrote says whether there was anything. Connections that are established stay as they are, but for those of UDP whose
// backend is none any more. After an error the next one writes the whole table.
func (b *Balancer) Write(ctx context.Context) (wrote bool, _ error) {
	doubted, whole := b.doubted.Swap(false), b.lost.Swap(false)
	if !doubted && !whole && len(b.dirty) == 0 {
		return false, nil
	}
	err := b.host.do(func() (err error) {
		if b.nft == nil {
			if b.nft, err = b.open(); err != nil {
				return fmt.Errorf("open nftables: %w: is the nft program installed and the nf_tables module loaded?", err)
			}
		}
		if doubted && !whole {
			if whole, err = b.gone(ctx); err != nil {
				return err
			}
		}
		if whole {
			err = b.replace(ctx)
		} else {
			err = b.update(ctx)
		}
		return err
	})
	if err != nil {
		b.forget()
		return true, fmt.Errorf("write nftables table inet %s: %w", balanceTable, err)
	}
	return true, nil
}

// gone says whether the table is not there, or empty.
func (b *Balancer) gone(ctx context.Context) (bool, error) {
	rules, err := b.nft.ListRules(ctx, chainPrerouting)
	if knftables.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether the table is there: %w", err)
	}
	return len(rules) == 0, nil
}

// replace writes everything. Affinities stay. What was written is not known: connections of UDP are looked at whatever they belong to, also of frontends that are none any more.
func (b *Balancer) replace(ctx context.Context) error {
	b.doubtDatagrams(maps.Keys(b.want), maps.Keys(b.have), maps.Keys(b.dirty), slices.Values(b.listDatagrams(ctx)))
	b.have, b.chains = map[Frontend]Balance{}, map[string]struct{}{}
	b.dirty = map[Frontend]struct{}{}
	for f := range b.want {
		b.dirty[f] = struct{}{}
	}
	tx := b.nft.NewTransaction()
	b.addTable(tx)
	next := b.changes(tx)
	err := b.removeLeftovers(ctx, tx, next)
	if err == nil {
		err = b.nft.Run(ctx, tx)
	}
	if err != nil {
		// Another version of Godwit may have left maps of another kind: once more, from nothing.
		b.chains = map[string]struct{}{}
		tx = b.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		b.addTable(tx)
		next = b.changes(tx)
		if err := b.nft.Run(ctx, tx); err != nil {
			return err
		}
	}
	return b.written(ctx, next)
}

// update writes what is dirty.
func (b *Balancer) update(ctx context.Context) error {
	tx := b.nft.NewTransaction()
	next := b.changes(tx)
	if tx.NumOperations() > 0 {
		if err := b.nft.Run(ctx, tx); err != nil {
			return err
		}
	}
	return b.written(ctx, next)
}

// changes adds what differs of the dirty frontends to tx, and returns what they will be; one that is to be no more is not in it.
func (b *Balancer) changes(tx *knftables.Transaction) map[Frontend]Balance {
	next := map[Frontend]Balance{}
	var out edits
	for _, f := range slices.SortedFunc(maps.Keys(b.dirty), Frontend.compare) {
		before, had := b.have[f]
		after, wanted := b.want[f]
		var old, now elements
		if had {
			old = f.elements(before)
		}
		if wanted {
			after = arranged(before, after)
			next[f] = after
			now = f.elements(after)
			b.addChains(tx, f, after)
		}
		out.diff(old, now)
	}
	out.write(tx)
	for f := range b.dirty {
		removeOwn(tx, f, b.have[f], next[f])
	}
	return next
}

// written remembers what is in the table now, and ends what still goes where it should not.
func (b *Balancer) written(ctx context.Context, next map[Frontend]Balance) error {
	sticky := map[Frontend]struct{}{}
	for f := range b.dirty {
		if next[f].Affinity > 0 {
			sticky[f] = struct{}{}
		}
		if !slices.Equal(b.have[f].backends(), next[f].backends()) {
			b.doubtDatagrams(slices.Values([]Frontend{f}))
		}
		delete(b.have, f)
	}
	maps.Copy(b.have, next)
	clear(b.dirty)
	if len(sticky) > 0 {
		if err := b.tidyAffinity(ctx, sticky); err != nil {
			return err
		}
	}
	if len(b.datagrams) > 0 {
		if err := b.endDatagrams(); err != nil {
			return err
		}
		clear(b.datagrams)
	}
	return nil
}

// backends are all of them.
func (b Balance) backends() []netip.AddrPort {
	out := slices.Clone(b.All.Backends)
	if b.Outside != nil {
		out = append(out, b.Outside.Backends...)
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// RemoveBalancer removes what a Balancer has written. Removing the absent succeeds.
func (h Host) RemoveBalancer(ctx context.Context) error {
	err := h.do(func() error {
		nft, err := knftables.New(knftables.InetFamily, balanceTable)
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		return nft.Run(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", balanceTable, err)
	}
	return nil
}

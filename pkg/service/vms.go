package service

import (
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// ArrivalGrace is for how long after a move an endpoint is held that is not ready yet where its VM arrived.
const ArrivalGrace = 60 * time.Second

// UnreadyBound is for how long at a stretch an endpoint is held of a VM that moves: a hand-over takes seconds, and a migration that is stuck may last for ever. It is
// looked at every unreadyCheck.
const (
	UnreadyBound = 5 * time.Minute
	unreadyCheck = 30 * time.Second
)

// VMs tells an Index what Ports say of VMs. It remembers which of them move, so as to know when they have: after a restart it takes a VM that does not move for one that
// has not. It is not safe for concurrent use, like the Index.
type VMs struct {
	index *Index
	ports map[types.NamespacedName]*vmPort
	// owners are the Ports that have an address: one that is given to another Port is that one's.
	owners map[netip.Addr]types.NamespacedName
}

type vmPort struct {
	addrs []netip.Addr
	vm    VM
	// until is when the hold of a VM that has moved ends.
	until time.Time
	// moving: it moves. since is from when on a Service has had it only because it is held, zero if none has; given up is one that has been so for too long, until it is ready again.
	moving, givenUp bool
	since           time.Time
}

// NewVMs returns one that knows no Port.
func NewVMs(index *Index) *VMs {
	return &VMs{index: index, ports: map[types.NamespacedName]*vmPort{}, owners: map[netip.Addr]types.NamespacedName{}}
}

// Set tells of a Port. If again is not 0, the same Port must be told once more after that time, changed or not: then a hold ends.
func (v *VMs) Set(p *v1alpha1.Port, now time.Time) (again time.Duration) {
	key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	before := v.ports[key]
	if before == nil {
		before = &vmPort{}
	}
	next := &vmPort{vm: VM{Node: p.Status.Node, Anchor: p.Status.EgressNode}}
	switch runs := p.Status.Phase == v1alpha1.PortAttached; { // one that was moving and is only bound now has died
	case p.Status.Phase == v1alpha1.PortMigrating:
		v.move(before, next, now)
		again = unreadyCheck
	case runs && before.moving && !before.givenUp:
		next.vm.Hold, next.until = Arriving, now.Add(ArrivalGrace)
	case runs && before.vm.Hold == Arriving && now.Before(before.until):
		next.vm.Hold, next.until = Arriving, before.until
	}
	for _, text := range p.Status.IPs {
		if addr, err := netip.ParseAddr(text); err == nil { // the controller writes them
			next.addrs = append(next.addrs, addr)
		}
	}
	v.ports[key] = next
	for _, addr := range next.addrs {
		v.owners[addr] = key
		v.index.SetVM(addr, next.vm)
	}
	for _, addr := range before.addrs {
		v.leave(key, addr)
	}
	if next.vm.Hold == Arriving {
		again = next.until.Sub(now)
	}
	return again
}

// move decides whether the endpoints of a VM that moves are still held.
func (v *VMs) move(before, next *vmPort, now time.Time) {
	next.moving, next.since, next.givenUp = true, before.since, before.givenUp
	held, ready := v.index.holding(before.addrs)
	switch {
	case held && next.since.IsZero():
		next.since = now
	case held && now.Sub(next.since) >= UnreadyBound:
		next.givenUp = true
	case !held && (ready || !next.givenUp):
		next.since, next.givenUp = time.Time{}, false
	}
	if !next.givenUp {
		next.vm.Hold = Moving
	}
}

// Delete says that a Port is gone. Deleting the absent does nothing.
func (v *VMs) Delete(key types.NamespacedName) {
	before := v.ports[key]
	if before == nil {
		return
	}
	delete(v.ports, key)
	for _, addr := range before.addrs {
		v.leave(key, addr)
	}
}

// leave takes an address from a Port that has it no more.
func (v *VMs) leave(key types.NamespacedName, addr netip.Addr) {
	if p := v.ports[key]; p != nil {
		for _, a := range p.addrs {
			if a == addr {
				return
			}
		}
	}
	if v.owners[addr] == key {
		delete(v.owners, addr)
		v.index.DeleteVM(addr)
	}
}

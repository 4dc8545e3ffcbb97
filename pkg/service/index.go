package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Index holds Services, their endpoints and VMs. Changes are told to it in any order; Take says which Services came out differently. An event costs what the Services
// that it is about have. It is not safe for concurrent use.
type Index struct {
	// reserved are the ranges of the network itself.
	reserved []netip.Prefix
	entries  map[Key]*entry
	vms      map[netip.Addr]VM
	// users are the Services that have an address among their endpoints.
	users map[netip.Addr]map[Key]struct{}
	// claims are the Services that ask for an address and port, and how; holder says which has it.
	claims map[frontend]map[Key]Kind
	// stale may come out differently, changed have.
	stale, changed map[Key]struct{}
}

// entry is a Service that the index knows.
type entry struct {
	*spec
	listing listing
	// now is what it came to at last, nil at first.
	now *Service
	// problems are what is wrong with it beside what the spec says, told all that was wrong at the last Take.
	problems, told []Problem
	// spent are the held endpoints that have been ready where their VM arrived.
	spent map[netip.AddrPort]bool
	// addrs are those by which the index finds the Service: what is listed, and what is held.
	addrs map[netip.Addr]struct{}
}

// New returns an Index without any objects.
func New() *Index {
	return &Index{
		entries: map[Key]*entry{}, vms: map[netip.Addr]VM{}, users: map[netip.Addr]map[Key]struct{}{}, claims: map[frontend]map[Key]Kind{},
		stale: map[Key]struct{}{}, changed: map[Key]struct{}{},
	}
}

// Reserve says which ranges are the network's own: those of Subnets, and the join network. A Service has no address in them: it would take a pod's traffic.
func (x *Index) Reserve(ranges []netip.Prefix) {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, netip.Prefix.Compare)
	ranges = slices.Compact(ranges)
	if slices.Equal(x.reserved, ranges) {
		return
	}
	x.reserved = ranges
	for key := range x.entries {
		x.stale[key] = struct{}{}
	}
}

// Set adds a Service with all of its EndpointSlices, or replaces the one of its name. One that needs no balancing is as if it were not there.
func (x *Index) Set(svc *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) {
	parsed, ok := parse(svc)
	if !ok {
		x.Delete(Key{Namespace: svc.Namespace, Name: svc.Name})
		return
	}
	key := parsed.service.Key
	next := &entry{spec: parsed, listing: parsed.list(endpointSlices), spent: map[netip.AddrPort]bool{}}
	if before := x.entries[key]; before != nil {
		x.forget(key, before)
		next.now, next.told = before.now, before.told
		if before.service.UID == parsed.service.UID {
			next.spent = before.spent
		}
	}
	x.entries[key] = next
	x.enlist(key, next)
	for f, kind := range next.frontends() {
		if x.claims[f] == nil {
			x.claims[f] = map[Key]Kind{}
		}
		x.claims[f][key] = kind
		x.recheck(f)
	}
	x.stale[key] = struct{}{}
}

// Delete removes a Service. Deleting the absent does nothing.
func (x *Index) Delete(key Key) {
	e := x.entries[key]
	if e == nil {
		return
	}
	x.forget(key, e)
	delete(x.entries, key)
	delete(x.stale, key)
	if e.now != nil {
		x.changed[key] = struct{}{}
	}
}

// SetVM says what is known of the VM that has an address.
func (x *Index) SetVM(addr netip.Addr, vm VM) {
	if before, ok := x.vms[addr]; ok && before == vm {
		return
	}
	x.vms[addr] = vm
	if vm.Hold != Arriving {
		x.renew(addr)
	}
	x.touch(addr)
}

// DeleteVM says that no VM has the address any more.
func (x *Index) DeleteVM(addr netip.Addr) {
	if _, ok := x.vms[addr]; ok {
		delete(x.vms, addr)
		x.renew(addr)
		x.touch(addr)
	}
}

// renew forgets where a VM has been ready: where it arrives next it has not been yet.
func (x *Index) renew(addr netip.Addr) {
	for key := range x.users[addr] {
		maps.DeleteFunc(x.entries[key].spent, func(at netip.AddrPort, _ bool) bool { return at.Addr() == addr })
	}
}

func (x *Index) touch(addr netip.Addr) {
	for key := range x.users[addr] {
		x.stale[key] = struct{}{}
	}
}

// Take returns the Services that have come out differently since the last Take, or have other problems, and those that are gone, sorted. What is held is what was ready at the last Take:
// after a start all VMs and all Services are told before the first one, or a VM that moves just then may be out of its Services until it has arrived.
func (x *Index) Take() []Key {
	for key := range x.stale {
		e := x.entries[key]
		next := x.resolve(e)
		problems := x.Problems(key)
		if e.now == nil || !equal(*e.now, next) || !slices.Equal(e.told, problems) {
			e.now, e.told = &next, problems
			x.changed[key] = struct{}{}
			x.enlist(key, e)
		}
	}
	out := slices.SortedFunc(maps.Keys(x.changed), Key.Compare)
	clear(x.stale)
	clear(x.changed)
	return out
}

// Service is what a Service came to at the last Take; ok is false if there is none.
func (x *Index) Service(key Key) (s Service, ok bool) {
	if e := x.entries[key]; e != nil && e.now != nil {
		return *e.now, true
	}
	return Service{}, false
}

// Services are all of them, sorted.
func (x *Index) Services() []Service {
	out := make([]Service, 0, len(x.entries))
	for _, key := range slices.SortedFunc(maps.Keys(x.entries), Key.Compare) {
		if s, ok := x.Service(key); ok {
			out = append(out, s)
		}
	}
	return out
}

// Problems are what was wrong with a Service at the last Take.
func (x *Index) Problems(key Key) []Problem {
	e := x.entries[key]
	if e == nil {
		return nil
	}
	return slices.Concat(e.spec.problems, e.problems)
}

// resolve makes of an entry what it comes to.
func (x *Index) resolve(e *entry) Service {
	s := e.service
	e.problems = nil
	s.Ports = slices.Clone(s.Ports)
	was := map[portKey]*Port{}
	known := e.now != nil && e.now.UID == s.UID // one of the same name that was made anew has held nothing
	if known {
		for i := range e.now.Ports {
			was[e.now.Ports[i].key()] = &e.now.Ports[i]
		}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		before := was[p.key()]
		if known && before == nil {
			before = &Port{} // one that has just come to a Service that was there has no endpoint that could be held
		}
		p.VIPs = x.granted(e, p)
		if f := (frontend{port: p.NodePort, protocol: p.Protocol}); p.NodePort != 0 && !x.has(e, f, fmt.Sprintf("node port %d/%s", p.NodePort, p.Protocol)) {
			p.NodePort = 0
		}
		p.Endpoints = x.endpoints(e, p.key(), before)
	}
	return s
}

// enlist lets a Service be found by the addresses of its endpoints. Held ones may be in no EndpointSlice any more.
func (x *Index) enlist(key Key, e *entry) {
	addrs := map[netip.Addr]struct{}{}
	for _, byAddr := range e.listing {
		for at := range byAddr {
			addrs[at.Addr()] = struct{}{}
		}
	}
	if e.now != nil {
		for _, p := range e.now.Ports {
			for _, end := range p.Endpoints {
				addrs[end.Addr.Addr()] = struct{}{}
			}
		}
	}
	maps.DeleteFunc(e.spent, func(at netip.AddrPort, _ bool) bool { _, still := addrs[at.Addr()]; return !still })
	for addr := range addrs {
		add(x.users, addr, key)
	}
	for addr := range e.addrs {
		if _, still := addrs[addr]; !still {
			remove(x.users, addr, key)
		}
	}
	e.addrs = addrs
}

// forget takes an entry out of what is found by address.
func (x *Index) forget(key Key, e *entry) {
	for addr := range e.addrs {
		remove(x.users, addr, key)
	}
	for f := range e.frontends() {
		if delete(x.claims[f], key); len(x.claims[f]) == 0 {
			delete(x.claims, f)
		}
		x.recheck(f)
	}
}

// holding says of a VM's addresses whether any was an endpoint at the last Take only because it is held, and whether any is listed as ready.
func (x *Index) holding(addrs []netip.Addr) (held, ready bool) {
	for _, addr := range addrs {
		for key := range x.users[addr] {
			e := x.entries[key]
			if e.now == nil {
				continue
			}
			for i := range e.now.Ports {
				p := &e.now.Ports[i]
				isReady := e.listing[p.key()].ready(addr)
				ready = ready || isReady
				held = held || !isReady && slices.ContainsFunc(p.Endpoints, func(end Endpoint) bool { return end.Addr.Addr() == addr && !end.Terminating })
			}
		}
	}
	return held, ready
}

func add(m map[netip.Addr]map[Key]struct{}, a netip.Addr, key Key) {
	if m[a] == nil {
		m[a] = map[Key]struct{}{}
	}
	m[a][key] = struct{}{}
}

func remove(m map[netip.Addr]map[Key]struct{}, a netip.Addr, key Key) {
	if delete(m[a], key); len(m[a]) == 0 {
		delete(m, a)
	}
}

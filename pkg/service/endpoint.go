package service

import (
	"maps"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Hold is why the endpoint of a VM is held.
type Hold int

// The holds.
const (
	// NotHeld: the endpoint is as its EndpointSlices say.
	NotHeld Hold = iota
	// Moving: the VM moves. What was ready is ready.
	Moving
	// Arriving: the VM has moved, or stayed after all, and has some time to become ready on its Node. When it has been, the hold is spent.
	Arriving
)

// VM is what is known of a VM that may be an endpoint.
type VM struct {
	// Node on which it runs; while it moves the one that it moves away from.
	Node string
	// Anchor is the node through which it leaves the cluster.
	Anchor string
	Hold   Hold
}

// state is of what use an endpoint is, better ones greater.
type state int

const (
	unusable state = iota
	terminating
	ready
)

// listed is what the EndpointSlices of a Service say of one address and port.
type listed struct {
	state state
	// node of the best one; nodes are those on which it is ready.
	node  string
	ready map[string]struct{}
}

// listing is what the EndpointSlices of a Service say, by the names of its ports.
type listing map[string]map[netip.AddrPort]*listed

// list reads EndpointSlices. An address may be in several: of a VM that moves both launchers are there. What cannot be read is left out; the API server admits none of it.
func list(endpointSlices []*discoveryv1.EndpointSlice) listing {
	out := listing{}
	for _, es := range endpointSlices {
		if es.AddressType != discoveryv1.AddressTypeIPv4 && es.AddressType != discoveryv1.AddressTypeIPv6 {
			continue
		}
		for i := range es.Ports {
			name, number := deref(es.Ports[i].Name), port(deref(es.Ports[i].Port))
			if number == 0 {
				continue
			}
			if out[name] == nil {
				out[name] = map[netip.AddrPort]*listed{}
			}
			for j := range es.Endpoints {
				out.add(name, number, &es.Endpoints[j])
			}
		}
	}
	return out
}

func (l listing) add(name string, number uint16, e *discoveryv1.Endpoint) {
	if len(e.Addresses) == 0 {
		return
	}
	addr, err := netip.ParseAddr(e.Addresses[0]) // "consumers must handle only the first" (discovery/v1)
	if err != nil {
		return
	}
	at := netip.AddrPortFrom(addr.Unmap(), number)
	entry := l[name][at]
	if entry == nil {
		entry = &listed{ready: map[string]struct{}{}}
		l[name][at] = entry
	}
	s, node := stateOf(e.Conditions), deref(e.NodeName)
	if s == ready {
		entry.ready[node] = struct{}{}
	}
	if s > entry.state || entry.node == "" {
		entry.state, entry.node = max(s, entry.state), node
	}
}

// stateOf reads conditions, of which those left out mean ready (discovery/v1).
func stateOf(c discoveryv1.EndpointConditions) state {
	isReady := c.Ready == nil || *c.Ready
	serving := isReady
	if c.Serving != nil {
		serving = *c.Serving
	}
	switch {
	case isReady:
		return ready
	case serving && deref(c.Terminating):
		return terminating
	default:
		return unusable
	}
}

func deref[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}

// endpoints are those of one port that may be used. before are those that it had, nil if it is new: then what a VM was before it moved is not known, and what is
// listed of it counts as ready.
func (x *Index) endpoints(e *entry, name string, before *Port) []Endpoint {
	found := e.listing[name]
	states := make(map[netip.AddrPort]state, len(found))
	for at, l := range found {
		states[at] = x.held(e, at, l, before)
	}
	if before != nil {
		for _, was := range before.Endpoints {
			if _, ok := states[was.Addr]; !ok && !was.Terminating && x.vms[was.Addr.Addr()].Hold != NotHeld && !e.spent[was.Addr] {
				states[was.Addr] = ready
			}
		}
	}
	var out []Endpoint
	for _, at := range slices.SortedFunc(maps.Keys(states), netip.AddrPort.Compare) {
		if states[at] == unusable {
			continue
		}
		end := Endpoint{Addr: at, Terminating: states[at] == terminating}
		if l := found[at]; l != nil {
			end.Node, end.Anchor = l.node, l.node
		}
		if vm, ok := x.vms[at.Addr()]; ok && vm.Node != "" {
			end.Node, end.Anchor = vm.Node, vm.Node
			if vm.Anchor != "" {
				end.Anchor = vm.Anchor
			}
		}
		out = append(out, end)
	}
	return out
}

// held is the state of what is listed, given what is known of a VM with its address.
func (x *Index) held(e *entry, at netip.AddrPort, l *listed, before *Port) state {
	vm := x.vms[at.Addr()]
	switch vm.Hold {
	case NotHeld:
		delete(e.spent, at)
		return l.state
	case Arriving:
		if _, there := l.ready[vm.Node]; there {
			e.spent[at] = true
		}
	case Moving:
		delete(e.spent, at)
	}
	if e.spent[at] || before != nil && !before.hasReady(at) {
		return l.state
	}
	return ready
}

func (p *Port) hasReady(at netip.AddrPort) bool {
	return slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Addr == at && !e.Terminating })
}

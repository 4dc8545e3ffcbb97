package service

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
	// node of the best one; ready are those on which it is ready, some perhaps more than once.
	node  string
	ready []string
}

// portKey tells apart the ports of a Service, as kube-proxy does (ServicePortName): an EndpointSlice's port is meant by name and protocol.
type portKey struct {
	name     string
	protocol corev1.Protocol
}

func (p *Port) key() portKey { return portKey{p.Name, p.Protocol} }

// listing is what the EndpointSlices of a Service say.
type listing map[portKey]portListing

// portListing is what they say of one port.
type portListing map[netip.AddrPort]*listed

// ready says whether an address is listed as ready, at whatever number.
func (l portListing) ready(addr netip.Addr) bool {
	for at, entry := range l {
		if at.Addr() == addr && entry.state == ready {
			return true
		}
	}
	return false
}

// list reads what EndpointSlices say of the Service's ports. An address may be in several: of a VM that moves both launchers are there. What cannot be read is left out; the API server admits
// none of it. There is an end to it (maxBackends): what then is left out follows from the objects alone, so that it is the same on all nodes.
func (s *spec) list(endpointSlices []*discoveryv1.EndpointSlice) listing {
	sorted := slices.Clone(endpointSlices)
	slices.SortStableFunc(sorted, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	out, reaches, room := listing{}, s.reaches(), maxBackends
	for _, es := range sorted {
		if es.AddressType != discoveryv1.AddressTypeIPv4 && es.AddressType != discoveryv1.AddressTypeIPv6 {
			continue
		}
		ports := out.wanted(es, reaches)
		for j := range es.Endpoints {
			if room -= enter(ports, &es.Endpoints[j], room); room < 0 {
				s.tooLarge("more than %d endpoints by the ports and addresses that lead to them: those of the first EndpointSlices, by their names, are used, the others are left out; use fewer ports, or several Services", maxBackends)
				return out
			}
		}
	}
	return out
}

// listedPort is a port of an EndpointSlice which the Service has too.
type listedPort struct {
	number uint16
	reach  reach
	into   portListing
}

// wanted are the ports of an EndpointSlice which the Service has.
func (l listing) wanted(es *discoveryv1.EndpointSlice, reaches map[portKey]reach) []listedPort {
	var out []listedPort
	for i := range es.Ports {
		key, number := portKey{deref(es.Ports[i].Name), protocolOf(deref(es.Ports[i].Protocol))}, port(deref(es.Ports[i].Port))
		r, has := reaches[key]
		if !has || number == 0 {
			continue
		}
		if l[key] == nil {
			l[key] = portListing{}
		}
		out = append(out, listedPort{number, r, l[key]})
	}
	return out
}

// enter lists an endpoint at all ports if there is room, and returns how much it takes.
func enter(ports []listedPort, e *discoveryv1.Endpoint, room int) (takes int) {
	if len(e.Addresses) == 0 {
		return 0
	}
	addr, err := netip.ParseAddr(e.Addresses[0]) // "consumers must handle only the first" (discovery/v1)
	if err != nil {
		return 0
	}
	addr = addr.Unmap()
	for i := range ports {
		takes += ports[i].reach.of(addr)
	}
	if takes > room {
		return takes
	}
	for i := range ports {
		ports[i].into.add(netip.AddrPortFrom(addr, ports[i].number), e)
	}
	return takes
}

func (l portListing) add(at netip.AddrPort, e *discoveryv1.Endpoint) {
	entry := l[at]
	if entry == nil {
		entry = &listed{}
		l[at] = entry
	}
	s, node := stateOf(e.Conditions), deref(e.NodeName)
	if s == ready {
		entry.ready = append(entry.ready, node)
	}
	if s > entry.state || s == entry.state && (entry.node == "" || node != "" && node < entry.node) { // whatever the order of the slices
		entry.state, entry.node = s, node
	}
}

// stateOf reads conditions, of which those left out mean ready and serving (discovery/v1).
func stateOf(c discoveryv1.EndpointConditions) state {
	isReady := c.Ready == nil || *c.Ready
	serving := c.Serving == nil || *c.Serving
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
func (x *Index) endpoints(e *entry, key portKey, before *Port) []Endpoint {
	found := e.listing[key]
	states := make(map[netip.AddrPort]state, len(found))
	for at, l := range found {
		states[at] = x.held(e, at, l, before)
	}
	x.holdUnlisted(e, states, before)
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

// holdUnlisted adds what was ready before and is in no EndpointSlice now. A VM that is listed with another number is not held with the old one besides.
func (x *Index) holdUnlisted(e *entry, states map[netip.AddrPort]state, before *Port) {
	if before == nil || !slices.ContainsFunc(before.Endpoints, func(was Endpoint) bool { return x.vms[was.Addr.Addr()].Hold != NotHeld }) {
		return
	}
	listed := make(map[netip.Addr]struct{}, len(states))
	for at := range states {
		listed[at.Addr()] = struct{}{}
	}
	for _, was := range before.Endpoints {
		addr := was.Addr.Addr()
		if _, ok := listed[addr]; !ok && !was.Terminating && x.vms[addr].Hold != NotHeld && !e.spent[was.Addr] {
			states[was.Addr] = ready
		}
	}
}

// held is the state of what is listed, given what is known of a VM with its address.
func (x *Index) held(e *entry, at netip.AddrPort, l *listed, before *Port) state {
	vm := x.vms[at.Addr()]
	if vm.Hold == NotHeld {
		return l.state
	}
	if vm.Hold == Arriving && slices.Contains(l.ready, vm.Node) {
		e.spent[at] = true
	}
	if e.spent[at] || before != nil && !before.hasReady(at) {
		return l.state
	}
	return ready
}

func (p *Port) hasReady(at netip.AddrPort) bool {
	return slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Addr == at && !e.Terminating })
}

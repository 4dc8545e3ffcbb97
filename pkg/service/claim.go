package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// frontend is an address and port that only one Service can have; of a NodePort there is no address. The API server gives out each ClusterIP and NodePort once, but
// a Service that is gone may be heard of after the one that has its address now, and anybody may ask for somebody's ClusterIP in externalIPs.
type frontend struct {
	addr     netip.Addr
	port     uint16
	protocol corev1.Protocol
}

// granted are the addresses that a port gets of those that its Service asks for.
func (x *Index) granted(e *entry, p *Port) []VIP {
	var out []VIP
	for _, v := range p.VIPs {
		if i := slices.IndexFunc(x.reserved, func(r netip.Prefix) bool { return r.Contains(v.Addr) }); i >= 0 {
			e.problems = append(e.problems, problem(ReasonReserved, "%s %s is in %s, which is a Subnet's or the join network: it is not served; use an address outside of the pod network",
				v.Kind, v.Addr, x.reserved[i]))
			continue
		}
		f := frontend{v.Addr, p.Number, p.Protocol}
		if x.has(e, f, fmt.Sprintf("%s %s port %d/%s", v.Kind, v.Addr, p.Number, p.Protocol)) {
			out = append(out, v)
		}
	}
	return out
}

// has says whether a Service has what it asks for, of which people read as what; if not, that is a problem of it.
func (x *Index) has(e *entry, f frontend, what string) bool {
	first := x.holder(f)
	if first != e.service.Key {
		e.problems = append(e.problems, problem(ReasonTaken, "%s is served by the Service %s, %s: use another", what, first, x.precedence(f, first)))
	}
	return first == e.service.Key
}

// precedence is why a Service has what others ask for too.
func (x *Index) precedence(f frontend, key Key) string {
	if x.claims[f][key] == ClusterIP && f.addr.IsValid() {
		return "whose ClusterIP it is"
	}
	return "which is older"
}

// holder is the Service that has an address and port: the one whose ClusterIP it is, then the oldest, by its name if two are equally old. Nobody takes another's
// ClusterIP by asking for it in externalIPs, however old.
func (x *Index) holder(f frontend) Key {
	var first Key
	found := false
	for key, kind := range x.claims[f] {
		if !found || cmp.Or(cmp.Compare(min(kind, ExternalIP), min(x.claims[f][first], ExternalIP)), x.entries[key].age.Compare(x.entries[first].age), key.Compare(first)) < 0 {
			first, found = key, true
		}
	}
	return first
}

// frontends are what a Service asks for.
func (s *spec) frontends() map[frontend]Kind {
	out := map[frontend]Kind{}
	for _, p := range s.service.Ports {
		for _, v := range p.VIPs {
			out[frontend{v.Addr, p.Number, p.Protocol}] = v.Kind
		}
		if p.NodePort != 0 {
			out[frontend{port: p.NodePort, protocol: p.Protocol}] = ClusterIP
		}
	}
	return out
}

// recheck looks again at everybody who asks for an address and port.
func (x *Index) recheck(f frontend) {
	for key := range x.claims[f] {
		x.stale[key] = struct{}{}
	}
}

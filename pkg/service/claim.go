package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// frontend is an address and port that only one Service can have; of a NodePort there is no address. The API server gives out each ClusterIP and NodePort once, but
// the end of a Service may be heard of after the one that has its address now, and anybody may ask for somebody's ClusterIP in externalIPs.
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
			e.wrong(ReasonReserved, "%s %s is in %s, which is a Subnet's or the join network: it is not served; use an address outside of the pod network",
				v.Kind, v.Addr, x.reserved[i])
			continue
		}
		f := frontend{v.Addr, p.Number, p.Protocol}
		if x.has(e, f, fmt.Sprintf("%s %s port %d/%s", v.Kind, v.Addr, p.Number, p.Protocol)) {
			out = append(out, v)
		}
	}
	return out
}

// has says whether a Service has what it asks for, of which people read as what; if not, that is a problem of it, unless the API gave it out again because the Service is gone.
func (x *Index) has(e *entry, f frontend, what string) bool {
	first := x.holder(f)
	if first != e.service.Key && x.claims[f][e.service.Key] != ClusterIP {
		e.wrong(ReasonTaken, "%s is served by the Service %s, %s: use another", what, first, x.precedence(f, first))
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

// holder is the Service that has an address and port. The one whose ClusterIP or NodePort it is: nobody takes that by asking for it in externalIPs, however old. Of two that were
// given it, the youngest: the other is gone. Of those that ask for it, the oldest. By its name if two are equally old.
func (x *Index) holder(f frontend) Key {
	var first Key
	found := false
	for key := range x.claims[f] {
		if !found || x.before(f, key, first) {
			first, found = key, true
		}
	}
	return first
}

// before says whether a Service, rather than another that claims an address and port too, has it.
func (x *Index) before(f frontend, a, b Key) bool {
	givenA, givenB := x.claims[f][a] == ClusterIP, x.claims[f][b] == ClusterIP
	if givenA != givenB {
		return givenA
	}
	age := x.entries[a].age.Compare(x.entries[b].age)
	if givenA {
		age = -age
	}
	return cmp.Or(age, a.Compare(b)) < 0
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

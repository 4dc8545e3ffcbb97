package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// A Service and its EndpointSlices are objects of up to 1.5 MB, and what they come to grows with products: of ports, addresses, endpoints and ranges of sources. Whoever may write one in some
// namespace must not be able to take the memory and the time of a controller and of agents that serve all of them.

// Bounds of one Service, which no Service for people comes near.
const (
	maxPorts     = 8192
	maxAddresses = 256
	// maxFrontends are ports by addresses. There is room for two ClusterIPs at each port.
	maxFrontends = 2 * maxPorts
	// maxBackends are endpoints by the ports and addresses, or node ports, that lead to them.
	maxBackends = 262144
	// maxAdmitted are ranges of sources by the ports and addresses that they are for.
	maxAdmitted = 262144
	// maxProblems is how many things are told to be wrong with one: each is an event.
	maxProblems = 100
)

// wrong notes what is wrong, unless there is enough to tell.
func (s *spec) wrong(reason Reason, format string, args ...any) {
	if len(s.problems) < maxProblems {
		s.problems = append(s.problems, problem(reason, format, args...))
	}
}

// tooLarge notes a bound. It is told besides whatever else is wrong.
func (s *spec) tooLarge(format string, args ...any) {
	s.problems = append(s.problems, problem(ReasonTooLarge, format, args...))
}

// wrong notes what is wrong with an entry beside what its spec says, unless there is enough to tell.
func (e *entry) wrong(reason Reason, format string, args ...any) {
	if len(e.spec.problems)+len(e.problems) < maxProblems {
		e.problems = append(e.problems, problem(reason, format, args...))
	}
}

// boundPorts are the ports that are served.
func (s *spec) boundPorts(all []corev1.ServicePort) []corev1.ServicePort {
	if len(all) <= maxPorts {
		return all
	}
	s.tooLarge("%d ports: the first %d are served, the others are left out; make several Services", len(all), maxPorts)
	return all[:maxPorts]
}

// boundVIPs are the addresses at which that many ports are served.
func (s *spec) boundVIPs(all []VIP, ports int) []VIP {
	most := min(maxAddresses, maxFrontends/max(1, ports))
	if len(all) <= most {
		return all
	}
	s.tooLarge("%d addresses at %d ports: want at most %d addresses, and %d ports by addresses; the first %d are served, ClusterIPs first and load balancer addresses last, the others are left out; make several Services",
		len(all), ports, maxAddresses, maxFrontends, most)
	return slices.Clone(all[:most]) // without the others behind them
}

// boundSources leaves out ranges that would be too many: what they would admit is not. The Service has its ports.
func (s *spec) boundSources() {
	if len(s.service.Ports) == 0 {
		return
	}
	restricted := 0
	for _, v := range s.service.Ports[0].VIPs {
		if v.Kind == LoadBalancer {
			restricted += len(s.service.Ports)
		}
	}
	if most := maxAdmitted / max(1, restricted); len(s.service.Sources) > most {
		s.tooLarge("spec.loadBalancerSourceRanges: %d ranges for %d ports by load balancer addresses: the first %d are admitted, by address, the others are not; use fewer or larger ranges",
			len(s.service.Sources), restricted, most)
		s.service.Sources = slices.Clone(s.service.Sources[:most])
	}
}

// reach is how many addresses and node ports lead to an endpoint of each of a Service's ports, in its family.
type reach struct{ v4, v6 int }

func (r reach) of(a netip.Addr) int {
	if a.Is4() {
		return r.v4
	}
	return r.v6
}

func (s *spec) reaches() map[portKey]reach {
	out := make(map[portKey]reach, len(s.service.Ports))
	var addresses reach
	if len(s.service.Ports) > 0 { // all have the same
		for _, v := range s.service.Ports[0].VIPs {
			if v.Addr.Is4() {
				addresses.v4++
			} else {
				addresses.v6++
			}
		}
	}
	for i := range s.service.Ports {
		p, r := &s.service.Ports[i], addresses
		if p.NodePort != 0 {
			r.v4, r.v6 = r.v4+1, r.v6+1
		}
		out[p.key()] = reach{max(1, r.v4), max(1, r.v6)} // what leads nowhere is listed all the same
	}
	return out
}

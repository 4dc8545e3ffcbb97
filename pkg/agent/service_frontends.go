package agent

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/service"
)

// frontends are what a node makes of a Service: all its addresses and node ports. Which endpoints clients get is kube-proxy's rule (pkg/proxy/topology.go in
// kubernetes/kubernetes): the scope of externalTrafficPolicy is for clients outside of the cluster alone.
func frontends(s service.Service, node string) map[netdev.Frontend]netdev.Balance {
	out := map[netdev.Frontend]netdev.Balance{}
	for _, p := range s.Ports {
		protocol, ok := protocolOf(p.Protocol)
		if !ok {
			continue
		}
		for _, v := range p.VIPs {
			b := external(s, p, v.Addr, node)
			if v.Kind == service.ClusterIP {
				b = internal(s, p, v.Addr, node)
			}
			if v.Kind == service.LoadBalancer {
				b.Sources = s.Sources
			}
			out[netdev.Frontend{Addr: v.Addr, Protocol: protocol, Port: p.Number}] = b
		}
		for _, family := range families(s) {
			if p.NodePort != 0 {
				out[netdev.Frontend{Addr: family, Protocol: protocol, Port: p.NodePort}] = external(s, p, family, node)
			}
		}
	}
	return out
}

// families are the unspecified addresses of those that a Service has.
func families(s service.Service) []netip.Addr {
	var out []netip.Addr
	if s.IPv4 {
		out = append(out, netip.IPv4Unspecified())
	}
	if s.IPv6 {
		out = append(out, netip.IPv6Unspecified())
	}
	return out
}

// internal is what becomes of connections to a ClusterIP.
func internal(s service.Service, p service.Port, at netip.Addr, node string) netdev.Balance {
	b := netdev.Balance{All: netdev.Choice{Backends: p.Any(at)}, Affinity: s.Affinity}
	if s.Internal == service.Local {
		b.All = scoped(b.All, p.On(at, node))
	}
	return b
}

// external is what becomes of connections to any other address, and to node ports. With scope Local a node to which nothing but VMs has moved serves as with scope Cluster: who
// leads clients to nodes by EndpointSlices leads them here, and a VM that saw them itself would answer through its anchor.
func external(s service.Service, p service.Port, at netip.Addr, node string) netdev.Balance {
	b := netdev.Balance{All: netdev.Choice{Backends: p.Any(at)}, Affinity: s.Affinity}
	if s.External != service.Local {
		return b
	}
	anchored := p.AnchoredAt(at, node)
	if len(anchored) > 0 || len(p.On(at, node)) == 0 {
		outside := scoped(b.All, anchored)
		b.Outside = &outside
	}
	return b
}

// scoped is a choice of some of all backends. Without any, what could be served elsewhere is dropped here.
func scoped(all netdev.Choice, some []netip.AddrPort) netdev.Choice {
	return netdev.Choice{Backends: some, Silent: len(some) == 0 && len(all.Backends) > 0}
}

func protocolOf(p corev1.Protocol) (netdev.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return netdev.TCP, true
	case corev1.ProtocolUDP:
		return netdev.UDP, true
	case corev1.ProtocolSCTP:
		return netdev.SCTP, true
	}
	return "", false // the API server admits no other
}

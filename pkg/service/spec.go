package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// spec is what a Service itself says. VIPs are those that it asks for, whether or not it gets them.
type spec struct {
	service Service
	// problems are what is wrong with it, and how large its EndpointSlices are.
	problems []Problem
	// age decides who keeps an address that two ask for.
	age time.Time
}

// parse reads a Service; ok is false if there is nothing to balance: it is headless, an ExternalName, or another proxy's.
func parse(svc *corev1.Service) (s *spec, ok bool) {
	key := Key{Namespace: svc.Namespace, Name: svc.Name}
	_, others := svc.Labels[ProxyLabel] // whatever it says
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" || others {
		return nil, false
	}
	s = &spec{service: Service{Key: key, UID: svc.UID}, age: svc.CreationTimestamp.Time}
	s.service.HealthCheckPort = port(svc.Spec.HealthCheckNodePort)
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		s.service.Internal = Local
	}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		s.service.External = Local
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.service.Affinity = affinity(svc)
	}
	s.parseSources(svc)
	ports := s.boundPorts(svc.Spec.Ports)
	vips := s.boundVIPs(s.vips(svc), len(ports))
	for _, p := range ports {
		s.service.Ports = append(s.service.Ports, Port{Name: p.Name, Protocol: protocolOf(p.Protocol), Number: port(p.Port), NodePort: port(p.NodePort), VIPs: vips})
	}
	s.boundSources()
	return s, true
}

// protocolOf is TCP for what does not say.
func protocolOf(p corev1.Protocol) corev1.Protocol { return cmp.Or(p, corev1.ProtocolTCP) }

// port is 0 for what is no port: the API server admits none of them.
func port(n int32) uint16 {
	if n < 0 || n > 65535 {
		return 0
	}
	return uint16(n)
}

func affinity(svc *corev1.Service) time.Duration {
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

func (s *spec) parseSources(svc *corev1.Service) {
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		s.service.Sources = []netip.Prefix{} // one that cannot be read still restricts
	}
	for _, text := range svc.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			s.wrong(ReasonInvalid, "spec.loadBalancerSourceRanges: %q is not a range such as 192.0.2.0/24: nothing is admitted by it", text)
			continue
		}
		s.service.Sources = append(s.service.Sources, p.Masked())
	}
	s.service.Sources = disjoint(s.service.Sources)
}

// disjoint is ranges without those that are within another: nftables takes no sets of ranges that overlap. Ranges of one family either do that or have nothing in common.
func disjoint(ranges []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ranges, netip.Prefix.Compare) // what contains others comes right before them
	out := ranges[:0]
	for _, p := range ranges {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// vips are all addresses that the Service asks for, sorted, each once: of two kinds it is the first. Addresses of a family that the Service does not have, which is
// that of its ClusterIPs, are left out: no endpoint could serve them.
func (s *spec) vips(svc *corev1.Service) []VIP {
	var out []VIP
	seen := map[netip.Addr]struct{}{}
	add := func(kind Kind, field, text string) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			s.wrong(ReasonInvalid, "%s: %q is not an IP address: it is left out", field, text)
			return
		}
		addr = addr.Unmap()
		if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			s.wrong(ReasonInvalid, "%s: %s is no address that can be reached from elsewhere: it is left out", field, addr)
			return
		}
		if kind == ClusterIP {
			s.service.IPv4, s.service.IPv6 = s.service.IPv4 || addr.Is4(), s.service.IPv6 || addr.Is6()
		}
		if _, twice := seen[addr]; !twice && s.service.Serves(addr) {
			seen[addr] = struct{}{}
			out = append(out, VIP{Kind: kind, Addr: addr})
		}
	}
	cluster := svc.Spec.ClusterIPs
	if len(cluster) == 0 {
		cluster = []string{svc.Spec.ClusterIP}
	}
	for _, a := range cluster {
		add(ClusterIP, "spec.clusterIPs", a)
	}
	for _, a := range svc.Spec.ExternalIPs {
		add(ExternalIP, "spec.externalIPs", a)
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			add(LoadBalancer, "status.loadBalancer.ingress", in.IP)
		}
	}
	slices.SortFunc(out, VIP.compare)
	return out
}

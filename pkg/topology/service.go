package topology

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
)

// ruleHairpin is ident.KeyRule of the policies of the router against a false source of connections that a Service leads back.
const ruleHairpin = "hairpin"

// affinity is by what a load balancer with sessionAffinity ClientIP chooses a backend. For IPv6 OVN has no field of its own, and ip_src means nothing there: a port's
// MAC address tells its pod. Not affinity_timeout: OVN drops the packet with which it learns where a client goes, and on the userspace datapath the connection never comes
// about, however often it is tried (23.03, measured).
func affinity() []nbdb.LoadBalancerSelectionFields {
	return []nbdb.LoadBalancerSelectionFields{nbdb.LoadBalancerSelectionFieldsEthSrc, nbdb.LoadBalancerSelectionFieldsIPSrc}
}

// ServiceRows are what a Service comes to for connections of pods.
type ServiceRows struct {
	// LoadBalancers belong to the network's group. They are sorted by name.
	LoadBalancers []*nbdb.LoadBalancer
	// Variables are what load balancers of ClusterIPs with internalTrafficPolicy Local are made of, on the nodes that have endpoints.
	Variables map[ident.ChassisName]map[string]string
	// Local are the addresses that only such a load balancer serves. Elsewhere what is sent to them is dropped (NetworkRows.LocalServices).
	Local []netip.Addr
}

// Service returns the rows of a Service. Connections to external addresses may go to any endpoint, whatever externalTrafficPolicy says: it is about clients outside of the
// cluster (kube-proxy's short circuit). An address that loadBalancerSourceRanges restrict has no load balancer here, as OVN's know no source: what pods send to it goes
// to their node, which does.
func Service(s service.Service) ServiceRows {
	b := builder{service: s, rows: map[ident.LoadBalancerName]*nbdb.LoadBalancer{}}
	for i := range s.Ports {
		p := &s.Ports[i]
		for _, v := range p.VIPs {
			switch any := p.Any(v.Addr); {
			case v.Kind == service.LoadBalancer && s.Sources != nil:
			case v.Kind == service.ClusterIP && s.Internal == service.Local && len(any) > 0: // without any endpoint it is refused, as elsewhere
				b.local(p, v.Addr)
			default:
				b.row(ident.LoadBalancer(s.Key.Namespace, s.Key.Name, protocol(p))).Vips[frontend(v.Addr, p.Number)] = backends(any)
			}
		}
	}
	for _, row := range b.rows {
		b.out.LoadBalancers = append(b.out.LoadBalancers, row)
	}
	slices.SortFunc(b.out.LoadBalancers, func(a, b *nbdb.LoadBalancer) int { return strings.Compare(a.Name, b.Name) })
	return b.out
}

type builder struct {
	service service.Service
	rows    map[ident.LoadBalancerName]*nbdb.LoadBalancer
	out     ServiceRows
}

// row is the load balancer of that name, made if need be.
func (b *builder) row(name ident.LoadBalancerName) *nbdb.LoadBalancer {
	if lb := b.rows[name]; lb != nil {
		return lb
	}
	kind := strings.Split(string(name), "/")[3]
	lb := &nbdb.LoadBalancer{
		Name: string(name), Protocol: &kind, Vips: map[string]string{}, Options: options(kind),
		ExternalIDs: map[string]string{
			ident.OwnerKey: ident.OwnerService, ident.KeyNamespace: b.service.Key.Namespace, ident.KeyName: b.service.Key.Name, ident.KeyUID: string(b.service.UID),
		},
	}
	if b.service.Affinity > 0 {
		lb.SelectionFields = affinity()
	}
	b.rows[name] = lb
	return lb
}

// options: what has no endpoint is refused; a pod that reaches itself sees an address that says so; datagrams do not go on to an endpoint that has gone (OVN 23.06 and later).
func options(protocol string) map[string]string {
	hairpin := ident.HairpinSources()
	out := map[string]string{"reject": "true", "hairpin_snat_ip": hairpin[0].String() + " " + hairpin[1].String()}
	if protocol == nbdb.LoadBalancerProtocolUDP {
		out["ct_flush"] = "true"
	}
	return out
}

// local adds a template: a load balancer that each node fills with its own endpoints. On a node without the variables it is not there.
func (b *builder) local(p *service.Port, vip netip.Addr) {
	name := ident.LocalLoadBalancer(b.service.Key.Namespace, b.service.Key.Name, protocol(p), family(vip))
	lb := b.row(name)
	lb.Options["template"], lb.Options["address-family"] = "true", "ipv"+strings.TrimPrefix(family(vip), "ip")
	number := strconv.Itoa(int(p.Number))
	address, ends := ident.TemplateVar(name, "address "+vip.String()), ident.TemplateVar(name, "backends "+vip.String()+" "+number)
	lb.Vips["^"+address+":"+number] = "^" + ends
	for node, on := range p.ByNode(vip) {
		chassis := ident.ChassisName(node)
		if b.out.Variables == nil {
			b.out.Variables = map[ident.ChassisName]map[string]string{}
		}
		if b.out.Variables[chassis] == nil {
			b.out.Variables[chassis] = map[string]string{}
		}
		b.out.Variables[chassis][address], b.out.Variables[chassis][ends] = vip.String(), backends(on)
	}
	if !slices.Contains(b.out.Local, vip) {
		b.out.Local = append(b.out.Local, vip)
	}
}

func protocol(p *service.Port) string {
	switch p.Protocol {
	case corev1.ProtocolUDP:
		return nbdb.LoadBalancerProtocolUDP
	case corev1.ProtocolSCTP:
		return nbdb.LoadBalancerProtocolSCTP
	default:
		return nbdb.LoadBalancerProtocolTCP
	}
}

func frontend(vip netip.Addr, number uint16) string { return netip.AddrPortFrom(vip, number).String() }

func backends(ends []netip.AddrPort) string {
	var b strings.Builder
	for i, e := range ends {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(e.String())
	}
	return b.String()
}

// localServicesPolicy drops what is sent to an address of LocalServices: a load balancer on the client's node would have taken it, and there is none.
func localServicesPolicy(like netip.Addr) *nbdb.LogicalRouterPolicy {
	return &nbdb.LogicalRouterPolicy{
		Priority: priorityLocalServices, Match: family(like) + ".dst == $" + ident.LocalServices(family(like)), Action: nbdb.LogicalRouterPolicyActionDrop,
		ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerService, ident.KeyName: "local", ident.KeyFamily: family(like)},
	}
}

// hairpinPolicy drops what comes to the router with the source of connections that a Service leads back to the pod that opened them: those never do, the pod's switch turns them round.
func hairpinPolicy(network string, like netip.Addr) *nbdb.LogicalRouterPolicy {
	sources := ident.HairpinSources()
	source := sources[slices.IndexFunc(sources[:], func(a netip.Addr) bool { return a.Is4() == like.Is4() })]
	return &nbdb.LogicalRouterPolicy{
		Priority: priorityHairpin, Match: family(like) + ".src == " + source.String(), Action: nbdb.LogicalRouterPolicyActionDrop,
		ExternalIDs: withRule(withFamily(ownedBy(ident.OwnerNetwork, network), like), ruleHairpin),
	}
}

// LocalServices returns the empty address sets that Services share, IPv4 first.
func LocalServices() []*nbdb.AddressSet {
	var out []*nbdb.AddressSet
	for _, like := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		out = append(out, &nbdb.AddressSet{Name: ident.LocalServices(family(like)), ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerService, ident.KeyFamily: family(like)}})
	}
	return out
}

// LocalServicesSet is the set that an address belongs to.
func LocalServicesSet(a netip.Addr) string { return ident.LocalServices(family(a)) }

package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Key names a Service.
type Key struct{ Namespace, Name string }

// String is NAMESPACE/NAME.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// Scope is to which endpoints a connection may go.
type Scope int

// The scopes of the API's traffic policies.
const (
	// Cluster: to any endpoint.
	Cluster Scope = iota
	// Local: to those of the node at which the connection comes in.
	Local
)

// Service is what a Service comes to. It must not be changed.
type Service struct {
	Key Key
	// UID of the object; another one means that the Service was made again.
	UID types.UID
	// Affinity is how long a client's connections go to one endpoint after the last of them was made; 0 if each goes to any.
	Affinity time.Duration
	// IPv4 and IPv6 say which families the Service has: those of its ClusterIPs.
	IPv4, IPv6 bool
	// Internal is the scope of ClusterIPs, External that of everything else.
	Internal, External Scope
	// HealthCheckPort is where each node says whether it has endpoints of its own; 0 if nowhere.
	HealthCheckPort uint16
	// Sources are from where VIPs of kind LoadBalancer may be reached, in both families; nil if from anywhere, empty if from nowhere.
	Sources []netip.Prefix
	// Ports in the order of the Service.
	Ports []Port
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
	// NodePort on every node's addresses; 0 if none.
	NodePort uint16
	// VIPs are the addresses at which the port is reached, sorted by kind and address. Those that are another's are left out.
	VIPs []VIP
	// Endpoints of both families that may be used, sorted, each address once.
	Endpoints []Endpoint
}

// Kind is of what kind a VIP is.
type Kind int

// The kinds of VIPs.
const (
	// ClusterIP is reached from inside of the cluster.
	ClusterIP Kind = iota
	// ExternalIP is one of the Service's externalIPs.
	ExternalIP
	// LoadBalancer is one that an implementation of load balancers wrote into the Service's status.
	LoadBalancer
)

// String is the kind as the API writes it.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "externalIP", "load balancer address"}[k]
}

// VIP is an address of a Service.
type VIP struct {
	Kind Kind
	Addr netip.Addr
}

func (v VIP) compare(o VIP) int { return cmp.Or(cmp.Compare(v.Kind, o.Kind), v.Addr.Compare(o.Addr)) }

// Endpoint is where connections can go.
type Endpoint struct {
	Addr netip.AddrPort
	// Node is where the endpoint is; empty if that is nowhere in the cluster, or not known.
	Node string
	// Anchor is the node to which it is local for clients outside of the cluster: Node, but for a VM, which leaves the cluster through the node on which it started.
	Anchor string
	// Terminating endpoints are used where there are no others: they end, and still serve.
	Terminating bool
}

// Any are the endpoints of the family of like to which a connection may go that is bound to no node.
func (p Port) Any(like netip.Addr) []netip.AddrPort {
	return p.pick(like, func(Endpoint) bool { return true })
}

// On are those on a node. If there are none, a connection of scope Local is to be dropped where Any has some, and refused where it has none.
func (p Port) On(like netip.Addr, node string) []netip.AddrPort {
	return p.pick(like, func(e Endpoint) bool { return e.Node == node })
}

// ByNode are On of every node that has some, found in one look. Endpoints of no known node are left out.
func (p Port) ByNode(like netip.Addr) map[string][]netip.AddrPort {
	stay, end := map[string][]netip.AddrPort{}, map[string][]netip.AddrPort{}
	for _, e := range p.Endpoints {
		switch {
		case e.Addr.Addr().Is4() != like.Is4() || e.Node == "":
		case e.Terminating:
			end[e.Node] = append(end[e.Node], e.Addr)
		default:
			stay[e.Node] = append(stay[e.Node], e.Addr)
		}
	}
	maps.Copy(end, stay)
	return end
}

// AnchoredAt are those that are local to a node for clients outside of the cluster. If there are none, it is as with On.
func (p Port) AnchoredAt(like netip.Addr, node string) []netip.AddrPort {
	return p.pick(like, func(e Endpoint) bool { return e.Anchor == node })
}

// pick prefers endpoints that do not end (kube-proxy's CategorizeEndpoints).
func (p Port) pick(like netip.Addr, wanted func(Endpoint) bool) []netip.AddrPort {
	var stay, end []netip.AddrPort
	for _, e := range p.Endpoints {
		switch {
		case e.Addr.Addr().Is4() != like.Is4() || !wanted(e):
		case e.Terminating:
			end = append(end, e.Addr)
		default:
			stay = append(stay, e.Addr)
		}
	}
	if len(stay) > 0 {
		return stay
	}
	return end
}

// Serves says whether the Service has the family of like: its NodePorts are open on addresses of its families only.
func (s Service) Serves(like netip.Addr) bool {
	return like.Is4() && s.IPv4 || like.Is6() && s.IPv6
}

// LocalEndpoints is how many endpoints of a Service a node has for clients outside of the cluster: what its health check answers. Those that end do not count: a
// load balancer shall send nothing new, while what comes all the same is still served (kube-proxy's LocalReadyEndpoints).
func (s Service) LocalEndpoints(node string) int {
	local := map[netip.Addr]struct{}{}
	for _, p := range s.Ports {
		for _, e := range p.Endpoints {
			if e.Anchor == node && !e.Terminating {
				local[e.Addr.Addr()] = struct{}{}
			}
		}
	}
	return len(local)
}

func equal(a, b Service) bool {
	return a.Key == b.Key && a.UID == b.UID && a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6 && a.Affinity == b.Affinity && a.Internal == b.Internal && a.External == b.External && a.HealthCheckPort == b.HealthCheckPort &&
		(a.Sources == nil) == (b.Sources == nil) && slices.Equal(a.Sources, b.Sources) && slices.EqualFunc(a.Ports, b.Ports, equalPorts)
}

func equalPorts(a, b Port) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol && a.Number == b.Number && a.NodePort == b.NodePort && slices.Equal(a.VIPs, b.VIPs) &&
		slices.Equal(a.Endpoints, b.Endpoints)
}

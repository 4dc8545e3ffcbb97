package oracle

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// State is of what use a pod is to Services.
type State int

// The states of pods.
const (
	Ready State = iota
	NotReady
	// Ending pods have been deleted and still answer their readiness probe.
	Ending
)

// Backend is a pod that a Service selects.
type Backend struct {
	Name, Node string
	Addrs      []netip.Addr
	State      State
	// OnHost: it is on its node's own network.
	OnHost bool
}

// Client opens connections.
type Client struct {
	// Addrs are those under which it is known when nothing translates them.
	Addrs []netip.Addr
	// Node on which it is, empty if it is none of the cluster's.
	Node string
	// OnHost: it is a process on its node's own network.
	OnHost bool
	// Backend is its name if it is one of the Service's pods itself.
	Backend string
}

// Kind is of what kind an address of a Service is.
type Kind string

// The kinds of addresses.
const (
	ClusterIP    Kind = "ClusterIP"
	ExternalIP   Kind = "externalIP"
	LoadBalancer Kind = "load balancer"
	NodePort     Kind = "NodePort"
)

// Target is what a client connects to: an address of a Service, at a port that the Service has there.
type Target struct {
	Kind Kind
	Addr netip.Addr
	// Node is the one whose address it is, of a NodePort; else the one to which the network outside takes the address.
	Node string
}

// Expectation is what becomes of connections that a client opens one after another.
type Expectation struct {
	// Backends may answer, sorted. None: nobody may.
	Backends []string
	// Each of them answers sooner or later; One of them answers always the same client. Neither: some of them.
	Each, One bool
	// Refused and Dropped are other outcomes that are right.
	Refused, Dropped bool
	// Kept: a backend that is not the client itself sees the client's own address.
	Kept bool
	// Why, in the words of the API.
	Why string
}

// Expect says what becomes of connections to an address of a Service that selects these backends.
func Expect(svc *corev1.Service, backends []Backend, from Client, to Target) Expectation {
	all := usable(svc, backends, to.Addr, anywhere)
	if len(all) == 0 {
		return Expectation{Refused: true, Why: "a Service without endpoints refuses connections"}
	}
	excluded := to.Kind == LoadBalancer && !admitted(svc, from, to.Addr)
	if excluded && from.Node == "" {
		return Expectation{Dropped: true, Why: "loadBalancerSourceRanges does not have the client"}
	}
	e := Expectation{Dropped: excluded} // of clients inside, which pass no load balancer, the text says nothing
	switch {
	case to.Kind == ClusterIP:
		e = internal(svc, backends, from, to)
	case svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal:
		e = externalLocal(svc, backends, from, to)
		e.Dropped = e.Dropped || excluded
	default:
		e.Backends, e.Each, e.Why = all, true, "externalTrafficPolicy Cluster: all endpoints, whatever the source becomes"
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && len(e.Backends) > 0 {
		e.Each, e.One, e.Why = false, true, e.Why+"; sessionAffinity: always the same"
	}
	return e
}

func internal(svc *corev1.Service, backends []Backend, from Client, to Target) Expectation {
	// "kept: pods to ClusterIP" – "Packets sent to ClusterIP from within the cluster are never source NAT'd" (tutorial "Using Source IP"). Of pods on a node's own
	// network, as backend or as client, it says nothing: the node has several addresses.
	e := Expectation{Kept: !from.OnHost && !slices.ContainsFunc(backends, func(b Backend) bool { return b.OnHost })}
	if p := svc.Spec.InternalTrafficPolicy; p == nil || *p == corev1.ServiceInternalTrafficPolicyCluster {
		e.Backends, e.Each, e.Why = usable(svc, backends, to.Addr, anywhere), true, "internalTrafficPolicy Cluster: all endpoints"
		return e
	}
	e.Backends, e.Each, e.Why = usable(svc, backends, to.Addr, on(from.Node)), true, `internalTrafficPolicy Local: "to endpoints on the same node as the client pod (dropping the traffic if there are no local endpoints)"`
	e.Dropped = len(e.Backends) == 0
	return e
}

func externalLocal(svc *corev1.Service, backends []Backend, from Client, to Target) Expectation {
	all := usable(svc, backends, to.Addr, anywhere)
	inside := from.Node != ""
	if inside && to.Kind != NodePort {
		return Expectation{Backends: all, Each: true, Why: `externalTrafficPolicy Local: "traffic sent to an External IP or LoadBalancer IP from within the cluster will always get Cluster semantics"`}
	}
	local := usable(svc, backends, to.Addr, on(to.Node))
	if inside && from.Node == to.Node {
		return Expectation{Backends: all, Dropped: len(local) == 0, Why: "a client of the cluster at its own node's NodePort: node-local or Cluster semantics, the text admits both"}
	}
	return Expectation{
		Backends: local, Each: true, Dropped: len(local) == 0, Kept: !inside,
		Why: `externalTrafficPolicy Local: "deliver traffic only to the node-local endpoints of the service, without masquerading the client source IP", dropped if there are none`,
	}
}

// admitted says whether loadBalancerSourceRanges has a client.
func admitted(svc *corev1.Service, from Client, like netip.Addr) bool {
	if len(svc.Spec.LoadBalancerSourceRanges) == 0 {
		return true
	}
	for _, text := range svc.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(text)
		if err == nil && slices.ContainsFunc(from.Addrs, func(a netip.Addr) bool { return a.Is4() == like.Is4() && p.Contains(a) }) {
			return true
		}
	}
	return false
}

func anywhere(Backend) bool { return true }

func on(node string) func(Backend) bool { return func(b Backend) bool { return b.Node == node } }

// usable are the names of those backends, of the family of like, to which connections go: ready ones, and if there is none those that end and still serve
// ("if all endpoints are terminating, those that serve are used": "Virtual IPs and Service Proxies", traffic to terminating endpoints).
func usable(svc *corev1.Service, backends []Backend, like netip.Addr, wanted func(Backend) bool) []string {
	var ready, ending []string
	for _, b := range backends {
		if !wanted(b) || !slices.ContainsFunc(b.Addrs, func(a netip.Addr) bool { return a.Is4() == like.Is4() }) {
			continue
		}
		switch {
		case b.State == Ready || svc.Spec.PublishNotReadyAddresses:
			ready = append(ready, b.Name)
		case b.State == Ending:
			ending = append(ending, b.Name)
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.Sort(ready)
	return ready
}

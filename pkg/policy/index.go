package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Pod is a pod, or a VM, as policies see it: one for each port on the network. It must not be changed after it was given away.
type Pod struct {
	// Port is the name of its LogicalSwitchPort, which need not exist yet.
	Port      ident.PortName
	Namespace string
	// Labels of a VM are those of its VMI, whatever its launchers say.
	Labels map[string]string
	// IPs are its addresses, at most one per family.
	IPs   []netip.Addr
	Ports []PodPort
	// HostNetwork: it is on its node's own network and has no port. Policies know nothing of it.
	HostNetwork bool
}

// PodPort is a named port of a pod's containers.
type PodPort struct {
	Name string
	// Protocol is TCP if it is empty.
	Protocol corev1.Protocol
	Number   int32
}

// Config is what does not change while an Index exists.
type Config struct {
	// Join are the join network's prefixes.
	Join []netip.Prefix
}

// Index holds policies, namespaces, pods and nodes, and the rows that follow from them. Changes are told to it in any order; Take says what they come to. An event
// of a pod costs what the pod's labels and its namespace's select, and changes as many rows, however many pods there are; one of a policy, a namespace or a node costs
// as much as the pods that it is about. It is not safe for concurrent use.
type Index struct {
	joinNets   []netip.Prefix
	groups     table[ident.PortName]
	sets       table[netip.Prefix]
	policies   map[Key]*policy
	pods       map[ident.PortName]*pod
	namespaces map[string]*namespace
	hosts      map[string]Host
	views      map[string]*view
	classes    map[string]*class
	// wide are the classes that a namespaceSelector is part of, by its text.
	wide   map[string]*wide
	blocks map[string]*block
	// moving are the ports that take connections along, whether or not there is a pod of them.
	moving map[ident.PortName]struct{}
	// stale are those whose ACLs may have changed since the last Take; written is what it told of them.
	stale   map[owner]struct{}
	written map[owner][]ACL
}

// owner is what has ACLs: a policy, a node, or, as the zero value, the network.
type owner struct {
	node   string
	policy Key
}

// policy is a NetworkPolicy that the index knows.
type policy struct{ parsed *parsed }

// New returns an Index without any objects. Its first Take has the rows that are always there.
func New(c Config) *Index {
	x := &Index{
		joinNets: c.Join, groups: newTable(comparePorts), sets: newTable(netip.Prefix.Compare),
		policies: map[Key]*policy{}, pods: map[ident.PortName]*pod{}, namespaces: map[string]*namespace{}, hosts: map[string]Host{},
		views: map[string]*view{}, classes: map[string]*class{}, wide: map[string]*wide{}, blocks: map[string]*block{},
		moving: map[ident.PortName]struct{}{}, stale: map[owner]struct{}{{}: {}}, written: map[owner][]ACL{},
	}
	for d := range [2]struct{}{} {
		x.groups.want(isolationGroup(direction(d)), "isolated pods, "+direction(d).String())
		x.groups.want(handoverGroup(isolationGroup(direction(d))), "isolated pods that take connections along, "+direction(d).String())
	}
	return x
}

func comparePorts(a, b ident.PortName) int { return strings.Compare(string(a), string(b)) }

// Snapshot is everything that policies are about.
type Snapshot struct {
	Policies []*networkingv1.NetworkPolicy
	// Namespaces are the labels of each. What a namespaceSelector says does not hold for a namespace that is not in it.
	Namespaces map[string]map[string]string
	Pods       []Pod
	Hosts      []Host
	// Moving are the ports that take connections along (Index.StartMoving).
	Moving []ident.PortName
}

// Compile returns the rows of a snapshot.
func Compile(c Config, s Snapshot) Rows { return Fill(c, s).Rows() }

// Fill returns an Index of a snapshot.
func Fill(c Config, s Snapshot) *Index {
	x := New(c)
	for name, labels := range s.Namespaces {
		x.SetNamespace(name, labels)
	}
	for _, p := range s.Policies {
		x.SetPolicy(p)
	}
	for _, p := range s.Pods {
		x.SetPod(p)
	}
	for _, h := range s.Hosts {
		x.SetHost(h)
	}
	for _, p := range s.Moving {
		x.StartMoving(p)
	}
	return x
}

// SetPolicy adds a policy, or replaces the one of its name.
func (x *Index) SetPolicy(np *networkingv1.NetworkPolicy) {
	next := &policy{parsed: parse(np)}
	key := next.parsed.key
	before := x.policies[key]
	x.policies[key] = next
	x.acquire(next) // before release: what both need stays
	if before != nil {
		x.release(before)
	}
	x.stale[owner{policy: key}] = struct{}{}
}

// DeletePolicy removes a policy.
func (x *Index) DeletePolicy(key Key) {
	p := x.policies[key]
	if p == nil {
		return
	}
	delete(x.policies, key)
	x.release(p)
	x.stale[owner{policy: key}] = struct{}{}
}

// Problems are what is wrong with a policy that the index has.
func (x *Index) Problems(key Key) []Problem {
	if p := x.policies[key]; p != nil {
		return p.parsed.problems
	}
	return nil
}

// SetHost adds a node, or replaces the one of its name.
func (x *Index) SetHost(h Host) {
	x.DeleteHost(h.Node)
	x.hosts[h.Node] = h
	for _, b := range x.blocks {
		x.countHost(b, h, x.sets.add)
	}
}

// DeleteHost removes a node.
func (x *Index) DeleteHost(node string) {
	if h, ok := x.hosts[node]; ok {
		for _, b := range x.blocks {
			x.countHost(b, h, x.sets.remove)
		}
	}
	delete(x.hosts, node)
	x.stale[owner{node: node}] = struct{}{}
}

// aclsOf are the ACLs of an owner as they should be now.
func (x *Index) aclsOf(o owner) []ACL {
	if o == (owner{}) {
		return baseACLs()
	}
	if o.node != "" {
		return x.hosts[o.node].exemption()
	}
	if p := x.policies[o.policy]; p != nil {
		return p.parsed.acls(x.numbers)
	}
	return nil
}

// numbers implements numbersOf.
func (x *Index) numbers(s viewSpec) []int32 {
	if v := x.views[s.key()]; v != nil {
		return slices.Sorted(maps.Keys(v.members))
	}
	return nil
}

// GroupsOf are the names of the port groups that a port is in, sorted.
func (x *Index) GroupsOf(port ident.PortName) []string {
	p := x.pods[port]
	if p == nil {
		return nil
	}
	var out []string
	for c := range p.classes {
		for v := range c.views {
			if v.form != portGroup {
				continue
			}
			for _, n := range v.numbers(&p.Pod) {
				out = append(out, x.groupsOf(v, member{p, n})...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

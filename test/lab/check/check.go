package check

import (
	"fmt"
	"slices"
	"sort"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// nodeLinks are veths of a node that belong to the machine, not to a pod.
var nodeLinks = []string{"eth0", "eth1"}

// comparison is the facts by name, and what has been found.
type comparison struct {
	pods     map[string]Pod
	vms      map[ident.PortName]VM
	ports    map[ident.PortName]Port
	bindings map[ident.PortName]Binding
	nodes    map[string]Node
	found    []string
}

// Compare returns every difference as a sentence, in a stable order; none means that all parts agree.
func Compare(f Facts) []string {
	c := &comparison{
		pods: map[string]Pod{}, vms: map[ident.PortName]VM{}, ports: map[ident.PortName]Port{}, bindings: map[ident.PortName]Binding{}, nodes: map[string]Node{},
	}
	for _, p := range f.Pods {
		c.pods[p.Namespace+"/"+p.Name] = p
	}
	for _, v := range f.VMs {
		c.vms[v.Row] = v
	}
	for _, p := range f.Ports {
		if _, twice := c.ports[p.Name]; twice {
			c.differ("NB: two Logical_Switch_Ports are named %s", p.Name)
		}
		c.ports[p.Name] = p
	}
	for _, b := range f.Bindings {
		c.bindings[b.Port] = b
	}
	for _, n := range f.Nodes {
		c.nodes[n.Name] = n
	}
	for _, p := range f.Pods {
		c.pod(p)
	}
	for _, v := range f.VMs {
		c.vm(v)
	}
	c.addresses(f.Pods)
	for _, p := range f.Ports {
		c.port(p)
	}
	for _, b := range f.Bindings {
		if _, ok := c.ports[b.Port]; !ok && b.Type == "" {
			c.differ("SB: Port_Binding %s has no Logical_Switch_Port in NB", b.Port)
		}
	}
	for _, n := range f.Nodes {
		if n.Runs {
			c.node(n, f.Chassis)
		}
	}
	for _, name := range f.Chassis {
		if _, ok := c.nodes[name]; !ok {
			c.differ("SB: Chassis %s is no node", name)
		}
	}
	f.Policies.Ports = f.Ports
	c.found = append(c.found, ComparePolicies(f.Policies)...)
	sort.Strings(c.found)
	return c.found
}

func (c *comparison) differ(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// pod compares a pod that runs with everything that it needs. One that starts or ends may lack any of it.
func (c *comparison) pod(p Pod) {
	name := p.Namespace + "/" + p.Name
	if p.IdentityError != "" {
		c.differ("API: pod %s: %s", name, p.IdentityError)
		return
	}
	if !p.Running || c.left(p) {
		return
	}
	if p.Identity == nil {
		c.differ("API: pod %s runs and has no identity annotation", name)
		return
	}
	if p.Identity.PodUID != p.UID {
		c.differ("API: pod %s has UID %s, its identity is for %s", name, p.UID, p.Identity.PodUID)
	}
	if !slices.Equal(p.IPs, p.Identity.IPs) {
		c.differ("API: pod %s has addresses %v in its status, its identity says %v", name, p.IPs, p.Identity.IPs)
	}
	for _, id := range p.identities() {
		c.row(p, id)
	}
}

// row compares a pod's interface with its row, and that with what is plugged in.
func (c *comparison) row(p Pod, id Identity) {
	port, ok := c.ports[id.Row]
	if !ok {
		c.differ("NB: pod %s/%s has no Logical_Switch_Port %s", p.Namespace, p.Name, id.Row)
		return
	}
	if len(port.Addresses) == 0 || port.Addresses[0] != id.Addresses {
		c.differ("NB: Logical_Switch_Port %s has addresses %q, the identity says %q", id.Row, port.Addresses, id.Addresses)
	}
	if port.RequestedChassis != p.Node {
		c.differ("NB: Logical_Switch_Port %s requests chassis %q, the pod is on %s", id.Row, port.RequestedChassis, p.Node)
	}
	c.attached(id.Row, p.Node, id.Version)
}

// identities are those of all interfaces of a pod.
func (p Pod) identities() []Identity {
	if p.Identity == nil {
		return nil
	}
	return append([]Identity{*p.Identity}, p.Others...)
}

// has says whether one of a pod's interfaces has the row.
func (p Pod) has(row ident.PortName) bool {
	return slices.ContainsFunc(p.identities(), func(id Identity) bool { return id.Row == row })
}

// left says that a pod's VM is elsewhere, or nowhere, and that the pod's node is down: nobody is there to say that the pod has ended.
func (c *comparison) left(p Pod) bool {
	if p.Identity == nil || c.nodes[p.Node].Runs {
		return false
	}
	vm, ok := c.vms[p.Identity.Row]
	return ok && vm.Node != p.Node
}

// vm compares a VM's Port with its row, and the row with the launchers that run.
func (c *comparison) vm(v VM) {
	row, ok := c.ports[v.Row]
	switch {
	case !v.Ready:
		return
	case !ok:
		c.differ("NB: Port %s has no Logical_Switch_Port %s", v.Port, v.Row)
		return
	case row.UID != v.UID:
		c.differ("NB: Logical_Switch_Port %s is for UID %q, Port %s has %s", v.Row, row.UID, v.Port, v.UID)
	case len(row.Addresses) == 0 || row.Addresses[0] != v.Addresses:
		c.differ("NB: Logical_Switch_Port %s has addresses %q, Port %s has %q", v.Row, row.Addresses, v.Port, v.Addresses)
	}
	if row.ActivationStrategy != "" {
		c.differ("NB: Logical_Switch_Port %s has activation-strategy %q: a migration is under way, or left it behind", v.Row, row.ActivationStrategy)
	}
	for _, p := range c.pods {
		if p.has(v.Row) && !p.Finished && !c.left(p) {
			return // its launcher is compared as a pod is
		}
	}
	if row.RequestedChassis != string(ident.NoChassis) {
		c.differ("NB: Logical_Switch_Port %s requests chassis %q, its VM has no launcher: want %s", v.Row, row.RequestedChassis, ident.NoChassis)
	}
}

// attached compares a port that should work on a node with its binding and its interface.
func (c *comparison) attached(id ident.PortName, node, version string) {
	n, ok := c.nodes[node]
	if !ok || !n.Runs {
		return // what a node that is down had bound stays bound
	}
	b, ok := c.bindings[id]
	switch {
	case !ok:
		c.differ("SB: port %s has no Port_Binding", id)
	case b.Chassis != node:
		c.differ("SB: port %s is bound to chassis %q, want %s", id, b.Chassis, node)
	case !b.Up:
		c.differ("SB: port %s is not up", id)
	}
	var mine []Interface
	for _, i := range n.Interfaces {
		if i.IfaceID == id {
			mine = append(mine, i)
		}
	}
	if len(mine) != 1 {
		c.differ("OVS: %d interfaces on %s have iface-id %s, want one", len(mine), node, id)
	}
	for _, i := range mine {
		if i.IfaceIDVer != version {
			c.differ("OVS: interface %s on %s is for UID %q of %s, want %q", i.Name, node, i.IfaceIDVer, id, version)
		}
	}
}

// addresses finds pods that share an address.
func (c *comparison) addresses(pods []Pod) {
	type has struct {
		pod string
		row ident.PortName
	}
	owner := map[string]has{}
	for _, p := range pods {
		if p.Finished {
			continue
		}
		name := p.Namespace + "/" + p.Name
		for _, id := range p.identities() {
			for _, ip := range id.IPs {
				if other, taken := owner[ip.String()]; taken && other.row != id.Row {
					c.differ("API: pods %s and %s both have address %s", other.pod, name, ip)
				}
				owner[ip.String()] = has{name, id.Row}
			}
		}
	}
}

// port compares a row with what it is for.
func (c *comparison) port(p Port) {
	if _, known := c.vms[p.Name]; ident.IsVMPort(p.Name) && !known {
		c.differ("NB: Logical_Switch_Port %s is for a VM's interface that has no Port", p.Name)
	}
	namespace, name, _, ok := ident.ParsePodPort(p.Name)
	if !ok {
		return
	}
	pod, exists := c.pods[namespace+"/"+name]
	switch {
	case !exists:
		c.differ("NB: Logical_Switch_Port %s is for a pod that does not exist", p.Name)
	case p.UID != pod.UID:
		c.differ("NB: Logical_Switch_Port %s is for UID %q, the pod's is %s", p.Name, p.UID, pod.UID)
	case pod.Running && pod.Identity != nil && !pod.has(p.Name):
		c.differ("NB: Logical_Switch_Port %s is for an interface that the pod's identity does not have", p.Name)
	}
}

// node compares a node that runs with its chassis, its gateway, and all that is plugged in on it.
func (c *comparison) node(n Node, chassis []string) {
	if !slices.Contains(chassis, n.Name) {
		c.differ("SB: node %s has no Chassis", n.Name)
	}
	id := ident.NodePort(n.Name)
	if _, ok := c.ports[id]; ok {
		c.attached(id, n.Name, "")
	} else {
		c.differ("NB: node %s has no Logical_Switch_Port %s", n.Name, id)
	}
	plugged := map[string]bool{}
	for _, i := range n.Interfaces {
		plugged[i.Name] = true
		c.plugged(n, i)
	}
	for _, l := range n.Links {
		if l.Veth && !plugged[l.Name] && !slices.Contains(nodeLinks, l.Name) {
			c.differ("kernel: veth %s on %s is not plugged into Open vSwitch", l.Name, n.Name)
		}
	}
}

// plugged compares an interface with its link and with the pod that it is for.
func (c *comparison) plugged(n Node, i Interface) {
	if i.IfaceID == "" {
		return
	}
	if i.Error != "" || i.Ofport <= 0 {
		c.differ("OVS: interface %s on %s (%s) does not work: ofport %d, error %q", i.Name, n.Name, i.IfaceID, i.Ofport, i.Error)
	}
	if !slices.ContainsFunc(n.Links, func(l Link) bool { return l.Name == i.Name }) {
		c.differ("kernel: %s on %s, the interface of %s, does not exist", i.Name, n.Name, i.IfaceID)
	}
	if i.IfaceID == ident.NodePort(n.Name) {
		return
	}
	if ident.IsVMPort(i.IfaceID) {
		c.launched(n, i)
		return
	}
	namespace, name, _, ok := ident.ParsePodPort(i.IfaceID)
	pod, exists := c.pods[namespace+"/"+name]
	switch {
	case !ok:
		c.differ("OVS: interface %s on %s has iface-id %q, which names no pod and not this node", i.Name, n.Name, i.IfaceID)
	case !exists:
		c.differ("OVS: interface %s on %s is for pod %s/%s, which does not exist", i.Name, n.Name, namespace, name)
	case pod.Node != n.Name:
		c.differ("OVS: interface %s on %s is for pod %s/%s, which is on %q", i.Name, n.Name, namespace, name, pod.Node)
	}
}

// launched compares a VM's interface with the launchers that there are.
func (c *comparison) launched(n Node, i Interface) {
	for _, p := range c.pods {
		if p.Node == n.Name && p.has(i.IfaceID) {
			return
		}
	}
	c.differ("OVS: interface %s on %s is %s, of which no launcher is on the node", i.Name, n.Name, i.IfaceID)
}

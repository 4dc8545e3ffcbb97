package controller

// Egress anchors: through which node a VM leaves the cluster.
// In:   VMs' rows (external_ids godwit.dev/egress-node, addresses), their Ports' status.egressNode where a row has lost it, Nodes (whether they are ready), Subnets' egress mode.
// Out:  NB Address_Set godwit_anchor_…: addresses. The rows themselves are vm.go's, which writes a VM's anchor with its chassis.
// The rows say who is anchored where. What is in a set follows from them, and is written whole: nothing depends on what was in it.

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// anchorPatience is for how long an anchor may be not ready before its VMs get another. Kubernetes says so after 40 s of silence: until then a reboot that was announced,
// or a kubelet that restarts, costs no connection.
const anchorPatience = 20 * time.Second

// anchors knows which VMs leave the cluster through which node. The reconcilers of VMs and Ports tell it what they write, and make its changes (pending) part of the same
// transaction: a VM is in its anchor's set before it can send anything. It is safe for concurrent use.
type anchors struct {
	api    client.Reader
	nb     *ovn.NB
	queues *queues
	virt   *kubevirt
	log    *slog.Logger
	now    func() time.Time

	mu    sync.Mutex
	ports map[ident.PortName]anchored
	nodes map[string]*anchor
}

// anchored is a VM's port.
type anchored struct {
	node string
	vm   types.NamespacedName
	ips  []netip.Addr
}

// anchor is a node.
type anchor struct {
	members  map[ident.PortName]anchored
	revision // of the members
	// absent: there are no sets. They are made with the node's other rows.
	absent bool
	// silent is since when the node is not ready, zero if it is.
	silent time.Time
}

func newAnchors(p parts, virt *kubevirt) *anchors {
	return &anchors{
		api: p.mgr.GetClient(), nb: p.nb, queues: p.queues, virt: virt, log: p.Logger, now: time.Now,
		ports: map[ident.PortName]anchored{}, nodes: map[string]*anchor{},
	}
}

// node must be called with the lock.
func (a *anchors) node(name string) *anchor {
	n := a.nodes[name]
	if n == nil {
		n = &anchor{members: map[ident.PortName]anchored{}, revision: revision{version: 1}}
		a.nodes[name] = n
	}
	return n
}

// restore reads who is anchored where. It is called once, on the leader, before anybody tells anything.
func (a *anchors) restore(ctx context.Context) error {
	rows, err := a.nb.Ports(ctx)
	if err != nil {
		return fmt.Errorf("egress anchors: %w", err)
	}
	for _, row := range rows {
		if row.ExternalIDs[ident.OwnerKey] == ident.OwnerVM {
			a.set(row, row.ExternalIDs[ident.KeyEgressNode])
		}
	}
	return nil
}

// set tells that a VM, by its row, is anchored at a node, or nowhere if that is empty.
func (a *anchors) set(row *nbdb.LogicalSwitchPort, node string) {
	now := anchored{node: node, vm: types.NamespacedName{Namespace: row.ExternalIDs[ident.KeyNamespace], Name: row.ExternalIDs[ident.KeyName]}, ips: topology.ParseAddresses(row.Addresses)}
	a.mu.Lock()
	defer a.mu.Unlock()
	port := ident.PortName(row.Name)
	was, known := a.ports[port]
	if node == "" && !known || known && was.node == node && slices.Equal(was.ips, now.ips) {
		return
	}
	a.drop(port)
	if node != "" {
		n := a.node(node)
		a.ports[port], n.members[port] = now, now
		n.version++
	}
}

// forget tells that a port is gone.
func (a *anchors) forget(port ident.PortName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(port)
}

// drop must be called with the lock.
func (a *anchors) drop(port ident.PortName) {
	was, known := a.ports[port]
	if !known {
		return
	}
	delete(a.ports, port)
	n := a.node(was.node)
	delete(n.members, port)
	n.version++
	if n.absent && len(n.members) == 0 {
		delete(a.nodes, was.node)
	}
}

// dirty says whether the database has something else than was told.
func (a *anchors) dirty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.nodes {
		if !n.absent && n.dirty() {
			return true
		}
	}
	return false
}

// pending writes what has been told and is not written yet.
func (a *anchors) pending() ovn.Change { return ovn.Later(a.changes) }

func (a *anchors) changes(transaction int) []ovn.Change {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ovn.Change
	for _, name := range slices.Sorted(maps.Keys(a.nodes)) {
		n := a.nodes[name]
		if n.absent || !n.due(transaction) {
			continue
		}
		version := n.version
		settled := func(sets int, err error) { a.settled(name, version, sets, err) }
		for _, set := range topology.AnchorSets(name, n.addresses()) {
			out = append(out, ovn.SetAddresses(set.Name, set.Addresses, settled))
		}
	}
	return out
}

// settled notes what became of one set of a node. What was not written stays to be written, by whoever writes next.
func (a *anchors) settled(node string, version, sets int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.node(node)
	switch {
	case err != nil:
		n.written = 0
	case sets == 0: // the node's reconciler makes them
		n.absent, n.written = true, 0
		a.queues.nodes.enqueue(types.NamespacedName{Name: node})
	case !n.absent:
		n.written = version
	}
}

// nodeChanges make a node's sets if there are none, and write what is not written.
func (a *anchors) nodeChanges(node string) []ovn.Change {
	a.mu.Lock()
	a.node(node).absent = false
	a.mu.Unlock()
	var out []ovn.Change
	for _, set := range topology.AnchorSets(node, nil) {
		out = append(out, ovn.MakeAddressSet(set))
	}
	return append(out, a.pending())
}

// rewrite lets all sets be written again: somebody may have changed them.
func (a *anchors) rewrite() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.nodes {
		n.written = 0
	}
}

// addresses of the members.
func (n *anchor) addresses() []netip.Addr {
	var out []netip.Addr
	for _, port := range slices.Sorted(maps.Keys(n.members)) {
		out = append(out, n.members[port].ips...)
	}
	return out
}

// observe tells whether a node is ready. It returns how long the VMs that are anchored there still wait for it, zero if they need not.
func (a *anchors) observe(node *corev1.Node) (left time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.node(node.Name)
	if isReady(node) {
		n.silent = time.Time{}
		return 0
	}
	now := a.now()
	if n.silent.IsZero() {
		n.silent = now
	}
	if left = n.silent.Add(anchorPatience).Sub(now); left > 0 {
		return left
	}
	a.wake(n)
	return 0
}

// gone tells that there is no such node any more, and returns what deletes its sets.
func (a *anchors) gone(node string) []ovn.Change {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.node(node)
	n.absent, n.written = true, 0
	a.wake(n)
	if len(n.members) == 0 {
		delete(a.nodes, node)
	}
	var out []ovn.Change
	for _, set := range topology.AnchorSets(node, nil) {
		out = append(out, ovn.DeleteAddressSet(set.Name))
	}
	return out
}

// wake lets the VMs of an anchor be looked at; it must be called with the lock.
func (a *anchors) wake(n *anchor) {
	for _, m := range n.members {
		a.virt.enqueue(m.vm)
	}
}

// alive says whether a node can be an anchor still.
func (a *anchors) alive(ctx context.Context, name string) (bool, error) {
	var node corev1.Node
	err := a.api.Get(ctx, types.NamespacedName{Name: name}, &node, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read node %s: %w", name, err)
	}
	if outOfService(&node) {
		return false, nil
	}
	if isReady(&node) {
		return true, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	return n == nil || n.silent.IsZero() || a.now().Sub(n.silent) < anchorPatience, nil
}

// isReady says whether a node's kubelet says that it is. One that says nothing yet is new, not broken.
func isReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}

// anchorOf is where a VM leaves the cluster that asks, or is about to ask, for what is decided. It stays where it started.
func (o observed) anchorOf(p migration.PortDecision) string {
	row := o.rows[p.Network]
	main, _, _ := strings.Cut(p.Want.Requested, ",")
	if p.Network != podNetwork || main == string(ident.NoChassis) || !o.anchors {
		return ""
	}
	version := row.Options[ident.OptionIfaceIDVer]
	if o.vmi != nil && version != "" && version != string(o.vmi.UID) {
		return main // another instance of the VM, which has no connections
	}
	if have := o.anchor(p.Network); have != "" && o.alive[have] {
		return have
	}
	return main
}

// anchor is the one that a VM has. A row that was made anew, since its database was lost, has no instance's version: then the Port knows it.
func (o observed) anchor(network string) string {
	row, port := o.rows[network], o.ports[network]
	if row.Options[ident.OptionIfaceIDVer] == "" && port != nil {
		return port.Status.EgressNode
	}
	return row.ExternalIDs[ident.KeyEgressNode]
}

// observeAnchors finds out whether the VM has one, and whether it lives.
func (r *vmReconciler) observeAnchors(ctx context.Context, o *observed) error {
	o.alive = map[string]bool{}
	if row := o.rows[podNetwork]; row != nil {
		var subnet v1alpha1.Subnet
		name := row.ExternalIDs[ident.KeySubnet]
		err := r.api.Get(ctx, types.NamespacedName{Name: name}, &subnet, client.UnsafeDisableDeepCopy)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("read Subnet %s: %w", name, err)
		}
		o.anchors = subnet.Spec.EgressMode() == v1alpha1.EgressNode
		if have := o.anchor(podNetwork); have != "" {
			if o.alive[have], err = r.anchors.alive(ctx, have); err != nil {
				return err
			}
		}
	}
	return nil
}

// tellAnchors tells where the VM's ports are anchored when what was decided is written, and says whether there is something to write.
func (r *vmReconciler) tellAnchors(vm types.NamespacedName, o observed, d migration.Decision) bool {
	if o.rows[podNetwork] == nil {
		r.anchors.forget(ident.VMPort(vm.Namespace, vm.Name, podNetwork))
	}
	for _, p := range d.Ports {
		now := o.anchorOf(p)
		if was := o.rows[p.Network].ExternalIDs[ident.KeyEgressNode]; was != now {
			r.log.Info("egress anchor", "port", p.Name, "node", cmp.Or(now, "none"), "was", cmp.Or(was, "none"))
		}
		r.anchors.set(o.rows[p.Network], now)
	}
	return r.anchors.dirty()
}

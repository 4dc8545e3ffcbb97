package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// gateway keeps the node's way into the overlay: ovn0, the routes to pods through it, forwarding, and masquerade for what leaves the cluster.
//
// A client's packet to a hostPort comes in on the underlay and goes to the pod over ovn0; the reply comes back on ovn0, because OVN sends what
// is for nobody in the cluster to the ovn0 of the pod's node. Both ways the kernel's route to the packet's source is the link that it came in on,
// so that strict reverse path filtering (rp_filter=1) holds.
//
// Inputs: annotation godwit.dev/join of the Node, Subnets. Outputs: OVS port ovn0; its addresses; routes of protocol netdev.RouteProtocol;
// net.ipv4.ip_forward, net.ipv6.conf.all.forwarding; nftables table inet godwit; entries of connection tracking under a former egress address, deleted.
type gateway struct {
	cfg  Config
	host hostNetwork

	mu sync.Mutex
	// masquerade is what nftables has from this process.
	masquerade *netdev.Masquerade
	// written are the translations that nftables has; changed is called when they are others.
	written []netdev.Translation
	changed func()
	// tracked are the translations that connections may have: endTranslated's alone.
	tracked []netdev.Translation
}

// translates says whether packets leave the node under an address.
func (g *gateway) translates(to netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.written, func(t netdev.Translation) bool { return t.To == to })
}

// forgetMasquerade makes the next pass write nftables anew: somebody may have emptied them.
func (g *gateway) forgetMasquerade() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.masquerade, g.written = nil, nil
}

// reconcile returns nil when pods of every Subnet, but for those in the ranges that it returns, can reach the node and, through it, everything else.
func (g *gateway) reconcile(ctx context.Context, db switchDB, in gatewayInput) ([]taken, error) {
	join, err := nodeJoin(in.node)
	if err != nil {
		return nil, err
	}
	port := ovs.Port{
		Name: ident.GatewayInterface, Internal: true, ID: ident.NodePort(g.cfg.NodeName), MAC: join.MAC.String(), MTU: in.mtu,
	}
	if err := db.EnsurePort(ctx, port); err != nil {
		return nil, err
	}
	if err := g.host.EnableForwarding(join.IPs); err != nil {
		return nil, err
	}
	if err := g.masqueradePods(ctx, in, join); err != nil {
		return nil, err
	}
	// ovs-vswitchd makes the link some milliseconds after the row, and again after each of its restarts.
	link := netdev.Gateway{
		Name: ident.GatewayInterface, MAC: net.HardwareAddr(join.MAC), MTU: in.mtu, Addrs: gatewayAddrs(join), NoOffload: in.datapath == ovs.DatapathNetdev,
	}
	if err := g.host.ConfigureGateway(link); err != nil {
		return nil, pendingLink(err)
	}
	routed, left, err := g.routable(in.podCIDRs)
	if err != nil {
		return nil, err
	}
	blocked, err := g.host.SyncRoutes(ident.GatewayInterface, podRoutes(routed, join))
	if err != nil {
		return nil, pendingLink(err)
	}
	for _, b := range blocked {
		left = append(left, taken{cidr: b.Dst, route: b.By})
	}
	return left, installed(ctx, db, g.cfg)
}

// gatewayAddrs are the addresses of ovn0. The second one of each family has no network around it: the kernel would else choose it as a source of what the node itself sends
// to the join network.
func gatewayAddrs(join v1alpha1.Join) []netip.Prefix {
	out := slices.Clone(join.IPs)
	for _, c := range join.Clients {
		out = append(out, netip.PrefixFrom(c.Addr(), c.Addr().BitLen()))
	}
	return out
}

// taken is a range of a Subnet that the node does not route to, and why: an address of its own that is in it, or somebody else's route to the very range.
type taken struct {
	cidr netip.Prefix
	by   netdev.HostAddr
	// route is in the words of `ip route`; empty if it is the address.
	route string
}

// routable leaves out the ranges that have an address of this node in them, which may be one that the Node does not show: a route to such a range would take the
// node's own network from it, and the API server with it, by which the Subnet could be put right.
func (g *gateway) routable(podCIDRs []netip.Prefix) (routed []netip.Prefix, left []taken, err error) {
	addrs, err := g.host.Addrs()
	if err != nil {
		return nil, nil, err
	}
	for _, cidr := range podCIDRs {
		i := slices.IndexFunc(addrs, func(a netdev.HostAddr) bool { return cidr.Contains(a.Addr.Addr()) })
		if i >= 0 {
			left = append(left, taken{cidr: cidr, by: addrs[i]})
			continue
		}
		routed = append(routed, cidr)
	}
	return routed, left, nil
}

// String says what is wrong and what to do.
func (t taken) String() string {
	if t.route != "" {
		return fmt.Sprintf("the node has no route to pods in %s, since it has another to that range (%s): remove that one where it is configured (ip route delete), or make the Subnet "+
			"(kubectl get subnets) anew with another range", t.cidr, t.route)
	}
	return fmt.Sprintf("the node has no route to pods in %s, in which its link %s has %s: remove the link if another CNI left it (ip link delete), or make the Subnet "+
		"(kubectl get subnets) anew with another range", t.cidr, t.by.Link, t.by.Addr)
}

// gatewayInput is what the gateway follows from.
type gatewayInput struct {
	node     *corev1.Node
	podCIDRs []netip.Prefix
	// translations are those of Subnets whose gateway the node is.
	translations []netdev.Translation
	// mtu of ovn0 in bytes.
	mtu      int
	datapath string
}

func nodeJoin(node *corev1.Node) (v1alpha1.Join, error) {
	text, ok := node.Annotations[v1alpha1.JoinAnnotation]
	if !ok {
		return v1alpha1.Join{}, fmt.Errorf("%w: Node %s has no annotation %s: is godwit-controller running?", errPending, node.Name, v1alpha1.JoinAnnotation)
	}
	join, err := v1alpha1.ParseJoin(text)
	if err != nil {
		return v1alpha1.Join{}, fmt.Errorf("%w: Node %s: %w", errPending, node.Name, err)
	}
	return join, nil
}

func pendingLink(err error) error {
	if errors.Is(err, netdev.ErrNoLink) {
		return fmt.Errorf("%w: %w: is ovs-vswitchd running?", errPending, err)
	}
	return err
}

func installed(ctx context.Context, db switchDB, cfg Config) error {
	port, err := db.Port(ctx, ident.GatewayInterface)
	if err != nil {
		return err
	}
	if port.Error != "" {
		return fmt.Errorf("%w: ovs-vswitchd cannot use %s: %s", errPending, port.Name, port.Error)
	}
	if !port.Installed {
		return fmt.Errorf("%w: OVN has not bound port %s: is ovn-controller running and connected to %s, and does the port exist in NB?",
			errPending, port.ID, cfg.SBRemote)
	}
	return nil
}

// podRoutes are the routes to the pods of every family that the node has a join address in, sorted.
func podRoutes(podCIDRs []netip.Prefix, join v1alpha1.Join) []netdev.Route {
	var out []netdev.Route
	for _, cidr := range podCIDRs {
		for i, ip := range join.IPs {
			if ip.Addr().Is4() == cidr.Addr().Is4() {
				out = append(out, netdev.Route{Dst: cidr, Via: join.Gateways[i], Src: ip.Addr()})
			}
		}
	}
	return out
}

// sortedPrefixes parses, sorts and removes duplicates, so that equal inputs are equal values. What does not parse is left out.
func sortedPrefixes(texts []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(texts))
	for _, s := range texts {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

func (g *gateway) masqueradePods(ctx context.Context, in gatewayInput, join v1alpha1.Join) error {
	want := netdev.Masquerade{Sources: in.podCIDRs, Gateway: ident.GatewayInterface, Translations: in.translations}
	for _, ip := range join.IPs { // the whole range between router and nodes: the annotation has its prefix length
		want.Except = append(want.Except, ip.Masked())
	}
	g.mu.Lock()
	same := g.masquerade != nil && reflect.DeepEqual(*g.masquerade, want)
	g.masquerade = &want // before writing: a deletion during it must not go unnoticed
	g.mu.Unlock()
	if same {
		return nil
	}
	if err := g.host.Masquerade(ctx, want); err != nil {
		g.forgetMasquerade()
		return err
	}
	g.mu.Lock()
	news := !slices.Equal(g.written, want.Translations)
	g.written = want.Translations
	g.mu.Unlock()
	if news && g.changed != nil {
		g.changed()
	}
	return nil
}

// endTranslated ends connections that leave under another address than they should by now. Pods reach everything else without it.
func (g *gateway) endTranslated() error {
	g.mu.Lock()
	now := g.masquerade
	g.mu.Unlock()
	if now == nil || slices.Equal(g.tracked, now.Translations) {
		return nil
	}
	if err := g.host.EndTranslated(*now, g.tracked); err != nil {
		return err
	}
	g.tracked = now.Translations
	return nil
}

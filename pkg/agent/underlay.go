package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// underlay puts the node's underlay link into a bridge of the userspace datapath, which tunnels over nothing else, with the link's addresses and routes on the bridge's
// own link. It does so once; from then on it gives the bridge back what it had whenever its link is made anew, as every ovs-vswitchd does,
// and moves what the node's link gets later.
//
// Inputs: the host's addresses, the local database. Outputs: Bridge, Ports and Interfaces of the underlay; external_ids godwit.dev/{underlay,addresses,routes,metric-routes} of the
// bridge's Interface; addresses and routes of both links, and the sysctls that keep the kernel from answering on the node's.
type underlay struct {
	cfg  Config
	host hostNetwork
}

// reconcile returns the configuration with which the tunnel's end is found now.
func (u *underlay) reconcile(ctx context.Context, db switchDB, node *corev1.Node) (Config, error) {
	cfg := u.cfg
	if cfg.UnderlayBridge == "" {
		return cfg, nil
	}
	bridge, found, err := db.Underlay(ctx, cfg.UnderlayBridge)
	if err != nil {
		return cfg, err
	}
	if !found {
		if bridge, err = u.create(ctx, db, node); err != nil || bridge.Bridge == "" {
			return cfg, err
		}
	}
	held, err := u.host.Holdings(bridge.Link)
	if err != nil {
		return cfg, pendingLink(err)
	}
	grown := bridge // a node that was started anew has its configured addresses on the link, maybe more than before
	grown.Addresses, grown.Routes = renewed(grown.Addresses, held.Addresses), renewedRoutes(grown.Routes, held.Routes)
	if err := db.AddUnderlay(ctx, grown); err != nil {
		return cfg, err
	}
	held.Addresses, held.Routes = grown.Addresses, grown.Routes
	if err := u.host.TakeOver(bridge.Bridge, bridge.Link, held); err != nil {
		return cfg, pendingLink(err)
	}
	if cfg.Underlay == bridge.Link {
		cfg.Underlay = bridge.Bridge
	}
	return cfg, nil
}

// renewed adds to addresses those that the link has got since, of IPv4 each in the place of what it had in the same network: somebody gave the node another address. Of IPv6 a link may have got one by itself, before the
// kernel is told not to answer there.
func renewed(had, got []netip.Prefix) []netip.Prefix {
	replaced := func(a netip.Prefix) bool {
		return a.Addr().Is4() && !slices.Contains(got, a) && slices.ContainsFunc(got, func(g netip.Prefix) bool { return g.Masked() == a.Masked() })
	}
	out := slices.DeleteFunc(slices.Clone(had), replaced)
	for _, g := range got {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// renewedRoutes adds to routes those that the link has got since, each in the place of what it had to the same destination: with the same metric, or, as earlier agents remembered those by the same gateway, with none.
func renewedRoutes(had, got []string) []string {
	parts := func(route string) (dst, gateway, metric string) {
		dst, rest, _ := strings.Cut(route, ">")
		gateway, metric, _ = strings.Cut(rest, ">")
		return dst, gateway, metric
	}
	out := slices.DeleteFunc(slices.Clone(had), func(h string) bool {
		dst, gateway, metric := parts(h)
		return !slices.Contains(got, h) && slices.ContainsFunc(got, func(g string) bool {
			d, gw, m := parts(g)
			return d == dst && (m == metric || metric == "" && gw == gateway)
		})
	})
	for _, g := range got {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// create makes the bridge for the link that the tunnels' address is on, unless that is Open vSwitch's already.
func (u *underlay) create(ctx context.Context, db switchDB, node *corev1.Node) (ovs.Underlay, error) {
	addrs, err := u.host.Addrs()
	if err != nil {
		return ovs.Underlay{}, err
	}
	current, err := db.EncapIP(ctx)
	if err != nil {
		return ovs.Underlay{}, err
	}
	t, err := chooseTunnel(u.cfg, internalIPs(node), addrs, current)
	if err != nil {
		return ovs.Underlay{}, err
	}
	switched, err := db.HasInterface(ctx, t.Link)
	if err != nil || switched {
		return ovs.Underlay{}, err
	}
	if err := separate(t.Link, node, addrs); err != nil {
		return ovs.Underlay{}, err
	}
	held, err := u.host.Holdings(t.Link)
	if err != nil {
		return ovs.Underlay{}, pendingLink(err)
	}
	bridge := ovs.Underlay{Bridge: u.cfg.UnderlayBridge, Link: t.Link, MAC: held.MAC.String(), Addresses: held.Addresses, Routes: held.Routes}
	return bridge, db.CreateUnderlay(ctx, bridge)
}

// carries refuses a tunnel's end beside the bridge: there is one, of another link than is asked for now, and ovs-vswitchd would drop whatever is for other nodes.
func (u *underlay) carries(ctx context.Context, db switchDB, t tunnel) error {
	if u.cfg.UnderlayBridge == "" {
		return nil
	}
	bridge, found, err := db.Underlay(ctx, u.cfg.UnderlayBridge)
	if err != nil || !found || t.Link == bridge.Bridge {
		return err
	}
	switched, err := db.HasInterface(ctx, t.Link)
	if err != nil || switched {
		return err
	}
	return fmt.Errorf("bridge %s has the link %s, and by --underlay %q tunnels would end at %s on %s, where the userspace datapath has none: let GODWIT_UNDERLAY name what it was, or, if no pod is to "+
		"go on here, take the bridge away (ovs-vsctl del-br %[1]s) and start the node anew: the agent makes it again with %[5]s", bridge.Bridge, bridge.Link, u.cfg.Underlay, t.IP, t.Link)
}

// separate refuses a link by which the node is reached: it would be without a network whenever ovs-vswitchd ends, and the agent without the API server that it
// needs to start.
func separate(link string, node *corev1.Node, addrs []netdev.HostAddr) error {
	for _, a := range addrs {
		if a.Link == link && slices.Contains(internalIPs(node), a.Addr.Addr()) {
			return fmt.Errorf("this kernel has no module openvswitch, and on the userspace datapath tunnels need a link of their own: %s has the Node's InternalIP %s: load the "+
				"module, or let GODWIT_UNDERLAY name another link", link, a.Addr.Addr())
		}
	}
	return nil
}

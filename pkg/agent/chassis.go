package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// What a Geneve packet has around the pod's IP packet, in bytes: the pod's Ethernet header (14), Geneve (8) with OVN's one option (8),
// UDP (8) and the outer IP header: RFC 8926, and ovn-architecture(7) for the option.
const (
	geneveOverhead4 = 14 + 8 + 8 + 8 + 20
	geneveOverhead6 = 14 + 8 + 8 + 8 + 40
)

// loopback is the link whose MTU says nothing of a network's.
const loopback = "lo"

// tunnel is where the node's tunnels end and what fits through them.
type tunnel struct {
	Link string
	IP   netip.Addr
	// MTU of pods in bytes.
	MTU int
}

// chassis makes the node an OVN chassis.
//
// Inputs: the Node's addresses, the host's addresses, the node's certificate. Outputs: Open_vSwitch.external_ids and ssl, the integration bridge, the userspace datapath's connection tracking and its
// capability ct_zero_snat, annotation godwit.dev/mtu.
type chassis struct {
	cfg      Config
	host     hostNetwork
	annotate NodeAnnotator
}

// reconcile returns the tunnel that is now configured.
func (c *chassis) reconcile(ctx context.Context, db switchDB, node *corev1.Node, datapath string) (tunnel, []string, error) {
	if err := db.SupportsDatapath(ctx, datapath); err != nil {
		return tunnel{}, nil, err
	}
	t, err := c.tunnelEnd(ctx, db, node, datapath)
	if err != nil {
		return tunnel{}, nil, err
	}
	// Before the chassis: ovn-controller makes a missing bridge itself, with a datapath of its own choice.
	if err := db.EnsureBridge(ctx, datapath); err != nil {
		return tunnel{}, nil, err
	}
	avoided := false
	if datapath == ovs.DatapathNetdev { // a restarted ovs-vswitchd, whose links are new, brings us here again
		if err := db.TrackLoosely(ctx); err != nil {
			return tunnel{}, nil, err
		}
		if avoided, err = db.AvoidZeroSNAT(ctx); err != nil {
			return tunnel{}, nil, err
		}
	}
	files, err := c.certificate()
	if err != nil {
		return tunnel{}, nil, err
	}
	changed, err := db.EnsureChassis(ctx, ovs.Chassis{
		Name: ident.ChassisName(c.cfg.NodeName), Remote: c.cfg.SBRemote, EncapIP: t.IP.String(), Datapath: datapath, TLS: files,
	})
	if avoided {
		changed = append(changed, "capabilities:ct_zero_snat")
	}
	if err != nil {
		return tunnel{}, changed, err
	}
	if mtu := strconv.Itoa(t.MTU); node.Annotations[v1alpha1.MTUAnnotation] != mtu {
		if err := c.annotate(ctx, v1alpha1.MTUAnnotation, mtu); err != nil {
			return tunnel{}, changed, err
		}
	}
	return t, changed, nil
}

// tunnelEnd is where the node's tunnels are to end. On the userspace datapath it is made so that they can.
func (c *chassis) tunnelEnd(ctx context.Context, db switchDB, node *corev1.Node, datapath string) (tunnel, error) {
	cfg, under := c.cfg, &underlay{cfg: c.cfg, host: c.host}
	if datapath == ovs.DatapathNetdev {
		var err error
		if cfg, err = under.reconcile(ctx, db, node); err != nil {
			return tunnel{}, err
		}
	}
	addrs, err := c.host.Addrs()
	if err != nil {
		return tunnel{}, err
	}
	current, err := db.EncapIP(ctx)
	if err != nil {
		return tunnel{}, err
	}
	t, err := chooseTunnel(cfg, internalIPs(node), addrs, current)
	if err != nil || datapath != ovs.DatapathNetdev {
		return t, err
	}
	return t, under.carries(ctx, db, t)
}

// certificate is what ovn-controller shows to the southbound database; nil where that asks for none. Its arrival runs the node's loop again.
func (c *chassis) certificate() (*ovs.TLSFiles, error) {
	if c.cfg.OVNTLSDir == "" {
		return nil, nil //nolint:nilnil // documented
	}
	files := pki.Dir(os.ReadFile, c.cfg.OVNTLSDir)
	if _, err := files.Check(time.Now()); err != nil {
		return nil, fmt.Errorf("%w: the node has no certificate for the southbound database: %w", errPending, err)
	}
	return &ovs.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key}, nil
}

// internalIPs are the Node's addresses of type InternalIP, in the Node's order.
func internalIPs(node *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}

// chooseTunnel picks the address that cfg.Underlay asks for and derives the MTU from its link. current is where tunnels end now, the zero value if nowhere.
func chooseTunnel(cfg Config, internal []netip.Addr, addrs []netdev.HostAddr, current netip.Addr) (tunnel, error) {
	matches, what := underlayMatch(cfg.Underlay, internal)
	var found *netdev.HostAddr
	for i := range addrs {
		a := &addrs[i]
		if a.Link == ident.GatewayInterface || !matches(a) {
			continue
		}
		if found == nil || better(a, found, current) {
			found = a
		}
	}
	if found == nil {
		return tunnel{}, fmt.Errorf("%w: no link of the node has %s: correct --underlay or the node's addresses", errPending, what)
	}
	overhead := geneveOverhead6
	if found.Addr.Addr().Is4() {
		overhead = geneveOverhead4
	}
	t := tunnel{Link: found.Link, IP: found.Addr.Addr(), MTU: found.MTU - overhead}
	if t.MTU < v1alpha1.MinMTU {
		return tunnel{}, fmt.Errorf("underlay %s has MTU %d, which leaves pods %d: IPv6 needs %d: raise the underlay's MTU to %d or more",
			t.Link, found.MTU, t.MTU, v1alpha1.MinMTU, v1alpha1.MinMTU+overhead)
	}
	if cfg.MTU > t.MTU {
		return tunnel{}, fmt.Errorf("--mtu %d does not fit: underlay %s has MTU %d, and tunnels take %d of it: lower --mtu to %d or raise the underlay's MTU",
			cfg.MTU, t.Link, found.MTU, overhead, t.MTU)
	}
	if cfg.MTU != 0 {
		t.MTU = cfg.MTU
	}
	return t, nil
}

// better says whether tunnels are to end at a rather than at b, which comes before it in the kernel's order. IPv4 has the smaller header. What tunnels end at now stays as long as it
// can: other nodes would have to make theirs anew, and of IPv6 the kernel's first is the latest, which may be another's to hand on. So may be an address without a network around it.
func better(a, b *netdev.HostAddr, current netip.Addr) bool {
	for _, has := range []func(*netdev.HostAddr) bool{
		func(h *netdev.HostAddr) bool { return h.Addr.Addr().Is4() },
		func(h *netdev.HostAddr) bool { return !h.Temporary },
		func(h *netdev.HostAddr) bool { return h.Link != loopback },
		func(h *netdev.HostAddr) bool { return !h.Addr.IsSingleIP() },
		func(h *netdev.HostAddr) bool { return h.Addr.Addr() == current },
	} {
		if has(a) != has(b) {
			return has(a)
		}
	}
	return false
}

// underlayMatch is the rule of --underlay, and what it looks for in words.
func underlayMatch(underlay string, internal []netip.Addr) (matches func(*netdev.HostAddr) bool, what string) {
	if underlay == "" {
		what = fmt.Sprintf("an InternalIP of the Node (%v)", internal)
		return func(a *netdev.HostAddr) bool {
			for _, ip := range internal {
				if a.Addr.Addr() == ip {
					return true
				}
			}
			return false
		}, what
	}
	if strings.Contains(underlay, "/") {
		cidr, err := netip.ParsePrefix(underlay)
		return func(a *netdev.HostAddr) bool { return err == nil && cidr.Contains(a.Addr.Addr()) }, "an address in --underlay " + underlay
	}
	return func(a *netdev.HostAddr) bool { return a.Link == underlay }, "the name of --underlay " + underlay + " and a global address"
}

// chooseDatapath resolves DatapathAuto.
func chooseDatapath(configured string) (string, error) {
	if configured != DatapathAuto {
		return configured, nil
	}
	kernel, err := netdev.HasGenl("ovs_datapath")
	if err != nil {
		return "", fmt.Errorf("choose datapath: %w", err)
	}
	if kernel {
		return ovs.DatapathSystem, nil
	}
	return ovs.DatapathNetdev, nil
}

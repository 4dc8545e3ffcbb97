package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkTimeout is how long a machine waits for whoever started it to connect it.
const linkTimeout = 60 * time.Second

// networker keeps the machine's links configured. Links come and go: the lab replaces cables when it repairs a hub, and the userspace
// datapath's bridge port vanishes with ovs-vswitchd.
type networker struct {
	log  *slog.Logger
	spec *Spec
	// noOffload are links whose other end is read by a userspace datapath, which takes a half-made checksum for a wrong one.
	noOffload map[string]bool
	// addresses of each link; a link without any is just set up.
	addresses map[string][]netip.Prefix
	// once are links that get their addresses when they appear, and may lose them afterwards: Godwit moves them to its bridge.
	once map[string]bool
	// replaced runs when another link has taken the place and name of one; nil for nothing. Open vSwitch goes on reading from the old one otherwise.
	replaced map[string]func(context.Context) error
	// indexes are the interface indexes seen last.
	indexes map[string]int
}

func newNetworker(log *slog.Logger, spec *Spec) *networker {
	n := &networker{
		log: log, spec: spec, noOffload: map[string]bool{}, addresses: map[string][]netip.Prefix{"lo": nil, MgmtLink: spec.Mgmt},
		once: map[string]bool{}, replaced: map[string]func(context.Context) error{}, indexes: map[string]int{},
	}
	switch {
	case spec.Kind == Node && spec.OVNPods:
		n.addresses[TunLink], n.once[TunLink] = spec.Tun, true
		n.noOffload[TunLink] = spec.Userspace
	case spec.Kind == Node && spec.Userspace:
		n.addresses[TunLink], n.addresses[UnderlayBridge] = nil, spec.Tun
		n.noOffload[TunLink], n.noOffload[UnderlayBridge] = true, true
	case spec.Kind == Node:
		n.addresses[TunLink] = spec.Tun
	}
	return n
}

// run configures links as they appear, until ctx ends. connected is closed when the management link has its addresses first.
func (n *networker) run(ctx context.Context, connected chan<- struct{}) error {
	updates := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ListExisting: true, ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch the machine's links: %w", err)
	}
	timeout := time.NewTimer(linkTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("watch the machine's links: %w", err)
		case <-timeout.C:
			return fmt.Errorf("link %s did not appear within %s: the process that started this machine should have made it", MgmtLink, linkTimeout)
		case u := <-updates:
			name := u.Attrs().Name
			if _, ours := n.addresses[name]; !ours || u.Header.Type != unix.RTM_NEWLINK {
				continue
			}
			if err := errors.Join(n.ensure(name), n.follow(ctx, name, u.Attrs().Index)); err != nil {
				// The link may be gone already, and its successor's event will come.
				n.log.Warn("a link could not be configured", "link", name, "err", err)
				continue
			}
			if name == MgmtLink && connected != nil {
				timeout.Stop()
				close(connected)
				connected = nil
			}
		}
	}
}

// follow notices a link that has replaced another.
func (n *networker) follow(ctx context.Context, name string, index int) error {
	old := n.indexes[name]
	n.indexes[name] = index
	if old == 0 || old == index || n.replaced[name] == nil {
		return nil
	}
	n.log.Info("link was replaced", "link", name)
	return n.replaced[name](ctx)
}

// ensure brings one link to its state; it changes nothing that is as it should be, or its own events would keep it busy.
func (n *networker) ensure(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if n.noOffload[name] {
		if err := checksumOff(name); err != nil {
			return fmt.Errorf("switch checksum offload of %s off: %w", name, err)
		}
	}
	if name == TunLink && n.spec.Userspace && !n.spec.OVNPods {
		if err := silence(name); err != nil {
			return err
		}
	}
	for _, p := range n.addresses[name] {
		if n.once[name] && n.indexes[name] == link.Attrs().Index {
			break
		}
		if err := addAddress(link, p); err != nil {
			return err
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		n.log.Info("link is up", "link", name, "addresses", n.addresses[name])
	}
	if name == MgmtLink && n.spec.Kind == Node {
		return n.defaultRoutes(link)
	}
	return nil
}

func (n *networker) defaultRoutes(link netlink.Link) error {
	for _, via := range n.spec.HubIPs {
		bits := 32
		dst := net.IPv4zero
		if via.Is6() {
			bits, dst = 128, net.IPv6zero
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice(), Dst: &net.IPNet{IP: dst, Mask: net.CIDRMask(0, bits)}}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route everything via %s: %w", via, err)
		}
	}
	return nil
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // the network is the lab's own: waiting for a duplicate would only cost a second
	}
	if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// silence keeps the kernel from answering on a link that belongs to the userspace datapath. The kernel sees its frames as well, and would tell the link's
// own MAC address to whoever asks for an address of the bridge.
func silence(name string) error {
	for sysctl, value := range map[string]string{"ipv4/conf/" + name + "/arp_ignore": "8", "ipv6/conf/" + name + "/disable_ipv6": "1"} {
		err := os.WriteFile("/proc/sys/net/"+sysctl, []byte(value), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // absent: a kernel without the family
			return fmt.Errorf("keep the kernel from answering on %s: %w", name, err)
		}
	}
	return nil
}

// checksumOff makes the kernel complete checksums of what it sends out of the link.
func checksumOff(link string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	const feature = "tx-checksum-ip-generic"
	features, err := e.Features(link)
	if err != nil {
		return err
	}
	if !features[feature] {
		return nil
	}
	return e.Change(link, map[string]bool{feature: false})
}

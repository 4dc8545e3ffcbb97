package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// Bridges in the hub.
const (
	mgmtBridge = "mgmt"
	tunBridge  = "tun"
)

// hostNumber is a machine's in the lab's networks.
func hostNumber(spec *boot.Spec) int {
	switch spec.Kind {
	case boot.Node:
		return firstNode + spec.Index - 1
	case boot.Outside:
		return outsideHost
	}
	return hubHost
}

// netnsOf is the network namespace of a process.
func netnsOf(p process) string { return fmt.Sprintf("/proc/%d/ns/net", p.Pid) }

// makeBridges makes the hub's bridges with its addresses; what exists stays.
func makeBridges(hub process, family string) error {
	return netns.Do(netnsOf(hub), func() error {
		for name, network := range map[string][2]netip.Prefix{mgmtBridge: mgmtNet, tunBridge: tunNet} {
			if err := makeBridge(name, hostAddresses(family, network, hubHost)); err != nil {
				return fmt.Errorf("make bridge %s in the hub: %w", name, err)
			}
		}
		return nil
	})
}

func makeBridge(name string, addresses []netip.Prefix) error {
	off := false
	// Without snooping, neighbour discovery is flooded like everything else and never waits for a querier.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hostMAC(name, hubHost)}, MulticastSnooping: &off}
	if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// cables of a machine: its link, and the bridge that it leads to.
func cables(kind boot.Kind) map[string]string {
	if kind == boot.Node {
		return map[string]string{boot.MgmtLink: mgmtBridge, boot.TunLink: tunBridge}
	}
	return map[string]string{boot.MgmtLink: mgmtBridge}
}

// connect plugs a machine into the hub's bridges; cables that are plugged in stay. The machine itself configures its end.
func connect(hub, m process, spec *boot.Spec) error {
	name := spec.Name
	for link, bridge := range cables(spec.Kind) {
		whole, err := plugged(hub, m, bridge+"-"+name, link)
		if err != nil {
			return fmt.Errorf("look at %s of %s: %w", link, name, err)
		}
		if whole {
			continue
		}
		if err := netns.Do(netnsOf(hub), func() error { return plug(m, spec, bridge, link) }); err != nil {
			return fmt.Errorf("plug %s of %s into bridge %s: %w", link, name, bridge, err)
		}
	}
	return nil
}

// plugged says whether the hub's link and the machine's are the two ends of one cable.
func plugged(hub, m process, hubLink, link string) (bool, error) {
	var here, there netlink.Link
	if err := netns.Do(netnsOf(hub), func() (err error) { here, err = find(hubLink); return err }); err != nil {
		return false, err
	}
	if err := netns.Do(netnsOf(m), func() (err error) { there, err = find(link); return err }); err != nil {
		return false, err
	}
	return here != nil && there != nil && here.Attrs().ParentIndex == there.Attrs().Index && there.Attrs().ParentIndex == here.Attrs().Index &&
		here.Attrs().MasterIndex != 0 && here.Attrs().Flags&net.FlagUp != 0, nil
}

// find is nil without an error for a link that does not exist.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return nil, nil
	}
	return link, err
}

// plug replaces a cable; it runs in the hub's namespace.
func plug(m process, spec *boot.Spec, bridge, link string) error {
	hubLink := bridge + "-" + spec.Name
	if err := unplugLink(hubLink); err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	fd, err := unix.Open(netnsOf(m), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open its network namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: hubLink, MasterIndex: br.Attrs().Index}, PeerName: link, PeerNamespace: netlink.NsFd(fd),
	}
	if bridge == mgmtBridge || !spec.Userspace { // otherwise the node's own bridge has the address, and the MAC address that goes with it
		veth.PeerHardwareAddr = hostMAC(bridge, hostNumber(spec))
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a veth: %w", err)
	}
	return netlink.LinkSetUp(veth)
}

func unplugLink(hubLink string) error {
	old, err := find(hubLink)
	if err != nil || old == nil {
		return err
	}
	if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the old cable %s: %w", hubLink, err)
	}
	return nil
}

// disconnect pulls all cables of a machine.
func disconnect(hub process, name string, kind boot.Kind) error {
	return netns.Do(netnsOf(hub), func() error {
		var errs []error
		for _, bridge := range cables(kind) {
			errs = append(errs, unplugLink(bridge+"-"+name))
		}
		return errors.Join(errs...)
	})
}

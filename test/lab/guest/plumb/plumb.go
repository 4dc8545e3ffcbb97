// Package plumb ties a pod's links to taps for a VM, as KubeVirt's virt-handler does (pkg/network/setup/netpod in KubeVirt's sources), and answers the guest's
// DHCP requests, as its virt-launcher does. It works in the network namespace of the process.
package plumb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// DefaultLink is the link of a pod's first network.
const DefaultLink = "eth0"

// Port is a NIC whose pod side is ready.
type Port struct {
	guest.Plumbed
	// Tap is what QEMU opens.
	Tap string
	// Bridge is the bridge in the pod; Lease what a DHCP server there gives to the guest, nil for none.
	Bridge string
	Lease  *Lease
}

// names of the links that are made for a pod's link, as KubeVirt names them.
func names(link string) (bridge, tap, nic string) {
	short := strings.TrimPrefix(link, "pod") // hashed names, which would become too long
	return "k6t-" + short, "tap" + link[min(3, len(link)):], short + "-nic"
}

// NIC plumbs one NIC, which must not be plumbed yet. index is its place in the VMI, from 0.
func NIC(n guest.NIC, index int) (Port, error) {
	if n.Link == "" {
		n.Link = DefaultLink
	}
	if n.Binding == "" {
		n.Binding = guest.Bridge
	}
	pod, err := discover(n.Link)
	if err != nil {
		return Port{}, fmt.Errorf("plumb network %s: %w", n.Name, err)
	}
	plumb := bridge
	switch n.Binding {
	case guest.Bridge:
	case guest.Masquerade:
		plumb = masquerade
	default:
		return Port{}, fmt.Errorf("plumb network %s: binding %q: want %s or %s", n.Name, n.Binding, guest.Bridge, guest.Masquerade)
	}
	p, err := plumb(n, pod, index)
	if err != nil {
		return Port{}, fmt.Errorf("plumb network %s by binding %s: %w", n.Name, n.Binding, err)
	}
	return p, nil
}

// podLink is what the CNI made of a pod's link.
type podLink struct {
	link   netlink.Link
	mac    net.HardwareAddr
	mtu    int
	addrs  []netip.Prefix
	routes []netlink.Route // IPv4
}

func discover(name string) (podLink, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return podLink{}, fmt.Errorf("find the pod's link %s: %w: the CNI should have made it", name, err)
	}
	p := podLink{link: link, mac: link.Attrs().HardwareAddr, mtu: link.Attrs().MTU}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return podLink{}, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if addr = addr.Unmap(); ok && addr.IsGlobalUnicast() {
			p.addrs = append(p.addrs, netip.PrefixFrom(addr, bits))
		}
	}
	if p.routes, err = netlink.RouteList(link, netlink.FAMILY_V4); err != nil {
		return podLink{}, fmt.Errorf("list the routes of %s: %w", name, err)
	}
	return p, nil
}

// ipv4 is the pod's first IPv4 address; it is not valid if there is none.
func (p podLink) ipv4() netip.Prefix {
	for _, a := range p.addrs {
		if a.Addr().Is4() {
			return a
		}
	}
	return netip.Prefix{}
}

// addBridge makes the pod's bridge and the tap that QEMU opens, both up.
func addBridge(name, tap string, mac net.HardwareAddr, mtu int) (netlink.Link, error) {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac, MTU: mtu}}
	if err := netlink.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	// QEMU opens the tap by its name and makes its checksums whole, because its guest is told not to leave any to others.
	t := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap, MTU: mtu}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS}
	if err := netlink.LinkAdd(t); err != nil {
		return nil, fmt.Errorf("make tap %s: %w: the pod must be privileged and the kernel have TUN", tap, err)
	}
	if err := netlink.LinkSetMTU(t, mtu); err != nil {
		return nil, fmt.Errorf("set the MTU of tap %s: %w", tap, err)
	}
	if err := errors.Join(disableIPv6(name), disableIPv6(tap), txChecksumOff(name)); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetMaster(t, br); err != nil {
		return nil, fmt.Errorf("put %s into bridge %s: %w", tap, name, err)
	}
	if err := errors.Join(netlink.LinkSetUp(t), netlink.LinkSetUp(br)); err != nil {
		return nil, fmt.Errorf("set %s and %s up: %w", name, tap, err)
	}
	return br, nil
}

// randomMAC is a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// guestMAC is the address that the guest gets.
func guestMAC(n guest.NIC, otherwise net.HardwareAddr) (net.HardwareAddr, error) {
	if n.MAC == "" {
		return otherwise, nil
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("MAC address %q: want six bytes of a unicast address", n.MAC)
	}
	return mac, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// disableIPv6 keeps the kernel from having addresses of its own on a link that is the guest's.
func disableIPv6(link string) error {
	err := sysctl(filepath.Join("ipv6/conf", link, "disable_ipv6"), "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}

func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl net/%s to %s: %w", name, value, err)
	}
	return nil
}

// txChecksumOff makes the kernel finish checksums before a packet leaves on the link: a userspace datapath does not.
func txChecksumOff(link string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open an ethtool socket: %w", err)
	}
	defer e.Close()
	features, err := e.FeaturesWithState(link)
	if err != nil {
		return fmt.Errorf("read the offload features of %s: %w", link, err)
	}
	off := map[string]bool{}
	for f, state := range features {
		if strings.HasPrefix(f, "tx-checksum-") && state.Active && !state.NeverChanged {
			off[f] = false
		}
	}
	if len(off) == 0 {
		return nil
	}
	if err := e.Change(link, off); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("switch TX checksum offload of %s off: %w", link, err)
	}
	return nil
}

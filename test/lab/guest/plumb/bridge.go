package plumb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// bridge gives the guest the pod's place: the CNI's link becomes a port of a bridge that has the guest's tap, and a link with its old name keeps the addresses,
// for whoever looks at the pod.
func bridge(n guest.NIC, pod podLink, index int) (Port, error) {
	mac, err := guestMAC(n, pod.mac)
	if err != nil {
		return Port{}, err
	}
	bridgeName, tap, nicName := names(n.Link)
	own := randomMAC()
	br, err := addBridge(bridgeName, tap, own, pod.mtu)
	if err != nil {
		return Port{}, err
	}
	if err := enslave(pod.link, br, nicName, own); err != nil {
		return Port{}, err
	}
	if err := addDummy(n.Link, pod); err != nil {
		return Port{}, err
	}
	// The pod's kernel has the guest's address and sees requests for it on the bridge, but it is the guest that answers.
	if err := sysctl("ipv4/conf/all/arp_ignore", "1"); err != nil {
		return Port{}, err
	}
	n.MAC = mac.String()
	p := Port{
		Plumbed: guest.Plumbed{NIC: n, PodMAC: pod.mac.String(), Addresses: pod.addrs, MTU: pod.mtu},
		Tap:     tap, Bridge: bridgeName,
	}
	if ip4 := pod.ipv4(); ip4.IsValid() {
		server := netip.AddrFrom4([4]byte{169, 254, 75, byte(10 + index)})
		if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(server, 32))}); err != nil {
			return Port{}, fmt.Errorf("give %s the DHCP server's address %s: %w", bridgeName, server, err)
		}
		p.Lease = bridgeLease(pod, mac, server)
	}
	p.DHCP = p.Lease != nil
	return p, nil
}

// enslave makes the CNI's link a port of the bridge, under another name and without addresses.
func enslave(link, br netlink.Link, name string, mac net.HardwareAddr) error {
	old := link.Attrs().Name
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("set %s down: %w", old, err)
	}
	if err := netlink.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", old, name, err)
	}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("set the MAC address of %s: %w", name, err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, name, err)
		}
	}
	if err := errors.Join(disableIPv6(name), txChecksumOff(name)); err != nil { // the addresses of IPv6 go with it
		return err
	}
	if err := netlink.LinkSetMaster(link, br); err != nil {
		return fmt.Errorf("put %s into the bridge: %w", name, err)
	}
	// All that the bridge has to know is that the guest is behind its tap.
	if err := netlink.LinkSetLearning(link, false); err != nil {
		return fmt.Errorf("switch learning off on %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// addDummy makes the link that keeps the pod's MAC address and addresses. It is down, as KubeVirt's is; a pair of virtual Ethernet links stands in for
// a dummy link, which not every kernel has.
func addDummy(name string, pod podLink) error {
	dummy := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: pod.mac, MTU: pod.mtu}, PeerName: strings.TrimPrefix(name, "pod") + "-old"}
	if err := netlink.LinkAdd(dummy); err != nil {
		return fmt.Errorf("make the link that keeps the addresses of %s: %w", name, err)
	}
	for _, a := range pod.addrs {
		if err := netlink.AddrAdd(dummy, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("give %s address %s: %w", name, a, err)
		}
	}
	return nil
}

// bridgeLease is what the guest is given: nothing, unless the CNI gave the pod an IPv4 route.
func bridgeLease(pod podLink, mac net.HardwareAddr, server netip.Addr) *Lease {
	l := Lease{MAC: mac, Address: pod.ipv4(), Server: server, MTU: pod.mtu}
	for _, r := range pod.routes {
		via, _ := netip.AddrFromSlice(r.Gw)
		if via = via.Unmap(); via.IsValid() && !l.Router.IsValid() {
			l.Router = via
		}
		if r.Src.Equal(l.Address.Addr().AsSlice()) && !via.IsValid() {
			continue // the kernel's own, of the address
		}
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			addr, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(addr.Unmap(), bits)
		}
		if !via.IsValid() {
			via = netip.IPv4Unspecified() // on the link
		}
		l.Routes = append(l.Routes, Route{Dst: dst, Via: via})
	}
	if len(pod.routes) == 0 {
		return nil
	}
	return &l
}

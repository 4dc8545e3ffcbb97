package netdev

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Holdings is what a link has that another can take over: global addresses, borrowed ones left out, and routes by a gateway, as DESTINATION>GATEWAY, or DESTINATION>GATEWAY>METRIC if the metric is not the
// kernel's own for a route that is added without one.
type Holdings struct {
	MAC       net.HardwareAddr
	MTU       int
	Addresses []netip.Prefix
	Routes    []string
}

// defaultMetric6 is the metric of an IPv6 route that is added without one: IP6_RT_PRIO_USER of linux/route.h.
const defaultMetric6 = 1024

// Holdings reads them. The error wraps ErrNoLink when there is no such link.
func (h Host) Holdings(name string) (out Holdings, err error) {
	err = h.do(func() error {
		link, err := netlink.LinkByName(name)
		if isNoLink(err) {
			return fmt.Errorf("%w: %s", ErrNoLink, name)
		}
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		out.MAC, out.MTU = link.Attrs().HardwareAddr, link.Attrs().MTU
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			if p, ok := prefix(a.IPNet); ok && p.Addr().IsGlobalUnicast() && !isBorrowed(p, &a) {
				out.Addresses = append(out.Addresses, p)
			}
		}
		out.Routes, err = gatewayRoutes(link)
		return err
	})
	return out, err
}

func gatewayRoutes(link netlink.Link) (out []string, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(link, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
		}
		for i := range routes {
			r := asRoute(&routes[i])
			if !r.Via.IsValid() || routes[i].Protocol == unix.RTPROT_RA || routes[i].Protocol == RouteProtocol {
				continue
			}
			if !r.Dst.IsValid() {
				r.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				if r.Via.Is6() {
					r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
			}
			text := r.Dst.String() + ">" + r.Via.String()
			if m := routes[i].Priority; m != 0 && (r.Via.Is4() || m != defaultMetric6) {
				text += ">" + strconv.Itoa(m)
			}
			out = append(out, text)
		}
	}
	return out, nil
}

// TakeOver gives a link, which Open vSwitch makes, what another held that is a port of its bridge now, and keeps the kernel from answering on that one: it would tell
// the port's MAC address to whoever asks, and take what is the bridge's. Checksums are finished by the kernel on both, since the userspace datapath reads what they
// send. The error wraps ErrNoLink as long as the first is not there; the other then keeps what it has.
func (h Host) TakeOver(to, from string, held Holdings) error {
	return h.do(func() error {
		link, err := netlink.LinkByName(to)
		if isNoLink(err) {
			return fmt.Errorf("%w: %s", ErrNoLink, to)
		}
		if err != nil {
			return fmt.Errorf("find link %s: %w", to, err)
		}
		old, err := netlink.LinkByName(from)
		if err != nil {
			return fmt.Errorf("find link %s, which carries the tunnels: %w", from, err)
		}
		if err := hush(old); err != nil {
			return err
		}
		if held.MTU > 0 && link.Attrs().MTU != held.MTU {
			if err := netlink.LinkSetMTU(link, held.MTU); err != nil {
				return fmt.Errorf("set MTU of %s to %d: %w", to, held.MTU, err)
			}
		}
		for _, name := range []string{to, from} {
			if err := txChecksumOff(name); err != nil {
				return err
			}
		}
		for _, l := range []netlink.Link{old, link} {
			if l.Attrs().Flags&net.FlagUp == 0 {
				if err := netlink.LinkSetUp(l); err != nil {
					return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
				}
			}
		}
		return errors.Join(syncAddrs(link, held.Addresses), addRoutes(link, held.Routes))
	})
}

// hush takes the addresses from a link and lets the kernel answer for none of them on it.
func hush(link netlink.Link) error {
	name := link.Attrs().Name
	for key, value := range map[string]string{"net/ipv4/conf/" + name + "/arp_ignore": "8", "net/ipv6/conf/" + name + "/disable_ipv6": "1"} {
		if _, err := os.Stat(filepath.Join("/proc/sys", key)); errors.Is(err, os.ErrNotExist) {
			continue // a kernel without the family
		}
		if err := writeSysctl(key, value); err != nil {
			return err
		}
	}
	return syncAddrs(link, nil)
}

// addRoutes adds those that the link lacks, in the place of one that it has by another gateway, and never in that of another link's: to the same destination with the same metric the kernel has one alone.
// None that fails is in the way of the others.
func addRoutes(link netlink.Link, routes []string) error {
	have, err := gatewayRoutes(link)
	if err != nil {
		return err
	}
	var errs []error
	for _, text := range routes {
		if slices.Contains(have, text) {
			continue
		}
		route, err := parseHeld(text)
		if err == nil {
			route.LinkIndex = link.Attrs().Index
			err = addHeld(route, netlink.RouteAdd)
		}
		if errors.Is(err, unix.EEXIST) {
			if !slices.ContainsFunc(have, func(h string) bool { return sameRoute(h, text) }) {
				continue // another link's
			}
			err = addHeld(route, netlink.RouteReplace)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("route %s dev %s: %w", text, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// addHeld adds a route of Holdings by one of netlink's functions. A gateway that no network of the link has, as where the address is a single one, is taken to be on the link: so it
// was there, by a route without a gateway, which is not remembered, or by the flag onlink.
func addHeld(route *netlink.Route, add func(*netlink.Route) error) error {
	err := add(route)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) { // of IPv4, of IPv6
		route.Flags |= unix.RTNH_F_ONLINK
		err = add(route)
	}
	return err
}

// parseHeld reads a route of Holdings.
func parseHeld(text string) (*netlink.Route, error) {
	dst, rest, _ := strings.Cut(text, ">")
	via, metric, _ := strings.Cut(rest, ">")
	p, err := netip.ParsePrefix(dst)
	gw, gwErr := netip.ParseAddr(via)
	priority, metricErr := strconv.Atoi(cmp.Or(metric, "0"))
	if err := errors.Join(err, gwErr, metricErr); err != nil {
		return nil, err
	}
	return &netlink.Route{Dst: ipNet(p), Gw: gw.AsSlice(), Priority: priority, Protocol: unix.RTPROT_STATIC}, nil
}

// sameRoute says whether two routes of Holdings go to the same destination with the same metric.
func sameRoute(a, b string) bool {
	x, err := parseHeld(a)
	y, yErr := parseHeld(b)
	return errors.Join(err, yErr) == nil && x.Dst.String() == y.Dst.String() && x.Priority == y.Priority
}

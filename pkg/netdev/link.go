package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes that Godwit adds, as `ip route` shows them ("proto 103"): only those are ever removed.
const RouteProtocol = 103

// Gateway is a link of the host that leads into the overlay.
type Gateway struct {
	Name string
	MAC  net.HardwareAddr
	// MTU in bytes.
	MTU int
	// Addrs are all global addresses that the link has; any other is removed, but for borrowed ones.
	Addrs []netip.Prefix
	// NoOffload: see Veth.
	NoOffload bool
}

// ConfigureGateway makes the link as wanted and sets it up. The error wraps ErrNoLink when there is none (yet).
func (h Host) ConfigureGateway(g Gateway) error {
	return h.do(func() error {
		link, err := netlink.LinkByName(g.Name)
		if err != nil {
			if isNoLink(err) {
				return fmt.Errorf("%w: %s", ErrNoLink, g.Name)
			}
			return fmt.Errorf("find link %s: %w", g.Name, err)
		}
		if err := linkAttributes(link, g); err != nil {
			return err
		}
		if g.NoOffload {
			if err := txChecksumOff(g.Name); err != nil {
				return err
			}
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("set %s up: %w", g.Name, err)
			}
		}
		return syncAddrs(link, g.Addrs)
	})
}

func linkAttributes(link netlink.Link, g Gateway) error {
	if !bytes.Equal(link.Attrs().HardwareAddr, g.MAC) {
		if err := netlink.LinkSetHardwareAddr(link, g.MAC); err != nil {
			return fmt.Errorf("set MAC address of %s to %s: %w", g.Name, g.MAC, err)
		}
	}
	if link.Attrs().MTU != g.MTU {
		if err := netlink.LinkSetMTU(link, g.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", g.Name, g.MTU, err)
		}
	}
	return nil
}

func syncAddrs(link netlink.Link, want []netip.Prefix) error {
	name := link.Attrs().Name
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	present := map[netip.Prefix]bool{}
	for _, a := range have {
		p, ok := prefix(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if slices.Contains(want, p) {
			present[p] = true
			continue
		}
		if isBorrowed(p, &a) {
			continue // SyncBorrowed's
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", p, name, err)
		}
	}
	for _, p := range want {
		if present[p] {
			continue
		}
		if err := netlink.AddrReplace(link, address(p)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

// Route is one route through a link of the host.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	// Src is the source address of what the host itself sends along it.
	Src netip.Addr
}

// Blocked is a range that gets no route, and what the route is in whose place it would be.
type Blocked struct {
	Dst netip.Prefix
	By  string
}

// SyncRoutes makes routes exactly the routes of RouteProtocol: missing ones are added dev the link, all others of that protocol removed.
// Routes of other protocols are never touched: blocked are those ranges to which somebody else has a route of the same metric, in the order of routes; none is in the way of the others.
func (h Host) SyncRoutes(linkName string, routes []Route) (blocked []Blocked, err error) {
	err = h.do(func() error {
		link, err := netlink.LinkByName(linkName)
		if err != nil {
			if isNoLink(err) {
				return fmt.Errorf("%w: %s", ErrNoLink, linkName)
			}
			return fmt.Errorf("find link %s: %w", linkName, err)
		}
		present, err := removeRoutes(link, routes)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if present[r] {
				continue
			}
			by, err := addRoute(link, r)
			if err != nil {
				return fmt.Errorf("add route to %s via %s dev %s src %s: %w", r.Dst, r.Via, linkName, r.Src, err)
			}
			if by != "" {
				blocked = append(blocked, Blocked{Dst: r.Dst, By: by})
			}
		}
		return nil
	})
	return blocked, err
}

// removeRoutes removes our routes but for those that are wanted, and returns which of these are there.
func removeRoutes(link netlink.Link, want []Route) (present map[Route]bool, err error) {
	have, err := ownRoutes()
	if err != nil {
		return nil, err
	}
	present = map[Route]bool{}
	for i := range have {
		r := asRoute(&have[i])
		if have[i].LinkIndex == link.Attrs().Index && slices.Contains(want, r) {
			present[r] = true
			continue
		}
		if err := netlink.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("remove route to %s: %w", r.Dst, err)
		}
	}
	return present, nil
}

// addRoute never takes another's place: it returns what is there.
func addRoute(link netlink.Link, r Route) (by string, err error) {
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.Dst), Gw: r.Via.AsSlice(), Src: r.Src.AsSlice(), Protocol: RouteProtocol})
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	by, listErr := routeTo(r.Dst)
	if listErr != nil || by == "" { // gone since: the next attempt succeeds
		return "", errors.Join(err, listErr)
	}
	return by, nil
}

// routeTo describes the route to exactly that range that the kernel has with the metric of one that is added without one, as `ip route` does; empty if there is none.
func routeTo(dst netip.Prefix) (string, error) {
	family, metric := netlink.FAMILY_V4, 0
	if dst.Addr().Is6() {
		family, metric = netlink.FAMILY_V6, defaultMetric6
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Dst: ipNet(dst)}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return "", fmt.Errorf("list routes to %s: %w", dst, err)
	}
	i := slices.IndexFunc(routes, func(r netlink.Route) bool { return r.Priority == metric })
	if i < 0 {
		return "", nil
	}
	text := dst.String()
	for _, hop := range append(routes[i].MultiPath, &netlink.NexthopInfo{Gw: routes[i].Gw, LinkIndex: routes[i].LinkIndex}) {
		if len(hop.Gw) > 0 {
			text += " via " + hop.Gw.String()
		}
		if name, err := linkName(hop.LinkIndex); err == nil && name != "" {
			text += " dev " + name
		}
	}
	return text + " proto " + routes[i].Protocol.String(), nil
}

func ownRoutes() ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes of protocol %d: %w", RouteProtocol, err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

func asRoute(r *netlink.Route) Route {
	dst, _ := prefix(r.Dst)
	via, _ := netip.AddrFromSlice(r.Gw)
	src, _ := netip.AddrFromSlice(r.Src)
	return Route{Dst: dst, Via: via.Unmap(), Src: src.Unmap()}
}

// HostAddr is one global unicast address of the host and the link that has it.
type HostAddr struct {
	Link string
	Addr netip.Prefix
	// MTU of the link in bytes.
	MTU int
	// Temporary: an IPv6 address that the kernel gives up after a while for another (RFC 8981).
	Temporary bool
}

// Addrs lists the host's global unicast addresses in the kernel's order, deprecated and tentative ones left out.
func (h Host) Addrs() ([]HostAddr, error) {
	var out []HostAddr
	err := h.do(func() error {
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			p, ok := prefix(a.IPNet)
			if !ok || !p.Addr().IsGlobalUnicast() || a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) != 0 {
				continue
			}
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if isNoLink(err) {
				continue // gone since
			}
			if err != nil {
				return fmt.Errorf("find the link of address %s: %w", p, err)
			}
			temporary := p.Addr().Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0 // of IPv4 the same bit says that it is not the network's first
			out = append(out, HostAddr{Link: link.Attrs().Name, Addr: p, MTU: link.Attrs().MTU, Temporary: temporary})
		}
		return nil
	})
	return out, err
}

// dumpAttempts bounds how often a listing is repeated. On a node that starts pods, links come and go all the time.
const dumpAttempts = 10

// dump repeats a listing that the kernel calls inconsistent because what it lists changed meanwhile.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpAttempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// LinkMAC is the MAC address of a link of the host; found is false if there is none of that name.
func (h Host) LinkMAC(name string) (mac net.HardwareAddr, found bool, err error) {
	err = h.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			if isNoLink(err) {
				return nil
			}
			return fmt.Errorf("find link %s: %w", name, err)
		}
		mac, found = link.Attrs().HardwareAddr, true
		return nil
	})
	return mac, found, err
}

// HasGenl reports whether the kernel has the generic netlink family: "ovs_datapath" is there when the openvswitch module is loaded.
func HasGenl(family string) (bool, error) {
	_, err := netlink.GenlFamilyGet(family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look generic netlink family %s up: %w", family, err)
	}
	return true, nil
}

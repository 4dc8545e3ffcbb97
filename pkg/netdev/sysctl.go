package netdev

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// writeSysctl writes only what differs: writing net.ipv4.ip_forward, even its own value, resets other settings of every interface, and a
// read-only /proc/sys that already has the value is no error. A key that the kernel does not have is an error.
func writeSysctl(key, value string) error {
	path := filepath.Join("/proc/sys", key)
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read sysctl %s: %w", key, err)
	}
	if strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %s (is %s): %w", key, value, strings.TrimSpace(string(old)), err)
	}
	return nil
}

// EnableForwarding lets the host forward packets of the families that addrs have.
func (h Host) EnableForwarding(addrs []netip.Prefix) error {
	return h.do(func() error {
		if slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
			if err := writeSysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
		}
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			return nil
		}
		if err := keepRouterAdvertisements(); err != nil {
			return err
		}
		return writeSysctl("net/ipv6/conf/all/forwarding", "1")
	})
}

// keepRouterAdvertisements sets accept_ra from 1 to 2 on the links that listen to routers: with forwarding on, 1 means "ignore them", and the node would lose its default route some minutes
// later, or never get one from a router that is later than the node. On a host that forwards already 1 means so, and stays, unless the link has its routes from routers all the same.
func keepRouterAdvertisements() error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes from router advertisements: %w", err)
	}
	forwards, err := hasSysctl("net/ipv6/conf/all/forwarding", "1")
	if err != nil || forwards && len(routes) == 0 {
		return err
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		routed := slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.LinkIndex == l.Attrs().Index })
		if !routed && (forwards || switched(l)) {
			continue
		}
		conf := "net/ipv6/conf/" + l.Attrs().Name
		accepts, err := hasSysctl(conf+"/accept_ra", "1")
		own, ownErr := hasSysctl(conf+"/forwarding", "1")
		if err := errors.Join(err, ownErr); err != nil {
			return err
		}
		if !accepts || own && !routed {
			continue
		}
		if err := writeSysctl(conf+"/accept_ra", "2"); err != nil {
			return err
		}
	}
	return nil
}

// switched says whether a link is Open vSwitch's, or the host's side of one of our veths: what comes from there is not the node's network.
func switched(l netlink.Link) bool {
	return l.Type() == "openvswitch" || l.Type() == "tuntap" || l.Type() == "veth" && isHostName(l.Attrs().Name)
}

// hasSysctl says whether a key has the value; one that the kernel does not have, has none.
func hasSysctl(key, value string) (bool, error) {
	have, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(have)) == value, nil
}

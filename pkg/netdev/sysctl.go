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

// keepRouterAdvertisements sets accept_ra from 1 to 2 on the links whose routes come from router advertisements: with forwarding on, 1 means
// "ignore them", and the node would lose its default route some minutes later.
func keepRouterAdvertisements() error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes from router advertisements: %w", err)
	}
	for _, r := range routes {
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone since
		}
		key := "net/ipv6/conf/" + link.Attrs().Name + "/accept_ra"
		value, err := os.ReadFile(filepath.Join("/proc/sys", key))
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(value)) != "1" {
			continue
		}
		if err := writeSysctl(key, "2"); err != nil {
			return err
		}
	}
	return nil
}

package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
)

// CheckContainer compares the container's side of a veth with what ConfigureContainer would make of it, and reports every difference.
func (Host) CheckContainer(nsPath string, want Interface) error {
	return InNetns(nsPath, func() error {
		link, err := netlink.LinkByName(want.Name)
		if err != nil {
			if isNoLink(err) {
				return fmt.Errorf("%w: %s in %s", ErrNoLink, want.Name, nsPath)
			}
			return fmt.Errorf("find %s in %s: %w", want.Name, nsPath, err)
		}
		var errs []error
		attrs := link.Attrs()
		if attrs.Flags&net.FlagUp == 0 {
			errs = append(errs, errors.New("is down, want up"))
		}
		if !bytes.Equal(attrs.HardwareAddr, want.MAC) {
			errs = append(errs, fmt.Errorf("has MAC address %s, want %s", attrs.HardwareAddr, want.MAC))
		}
		if attrs.MTU != want.MTU {
			errs = append(errs, fmt.Errorf("has MTU %d, want %d", attrs.MTU, want.MTU))
		}
		errs = append(errs, checkAddrs(link, want), checkRoutes(link, want))
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("%s in %s: %w", want.Name, nsPath, err)
		}
		return nil
	})
}

// boundSuffix is what KubeVirt's bridge binding adds to the name of the pod's interface, and hashedPrefix what it takes from that of a second network's (KubeVirt
// pkg/network/link, GenerateNewBridgedVmiInterfaceName).
const (
	boundSuffix  = "-nic"
	hashedPrefix = "pod"
)

// CheckLauncher is CheckContainer for the pod of a VM, whose interface KubeVirt may have given to the VM: it has another name then, no addresses, and any MAC.
func (h Host) CheckLauncher(nsPath string, want Interface) error {
	bound := false
	err := InNetns(nsPath, func() error {
		name := strings.TrimPrefix(want.Name, hashedPrefix) + boundSuffix
		link, err := netlink.LinkByName(name)
		if err != nil {
			if isNoLink(err) {
				return nil
			}
			return fmt.Errorf("find %s in %s: %w", name, nsPath, err)
		}
		bound = true
		if attrs := link.Attrs(); attrs.Flags&net.FlagUp == 0 || attrs.MTU != want.MTU {
			return fmt.Errorf("%s in %s is %s with MTU %d, want it up with %d", attrs.Name, nsPath, attrs.OperState, attrs.MTU, want.MTU)
		}
		return nil
	})
	if err != nil || bound {
		return err
	}
	return h.CheckContainer(nsPath, want)
}

func checkAddrs(link netlink.Link, want Interface) error {
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	for _, w := range want.Addrs {
		found := false
		for _, a := range have {
			p, ok := prefix(a.IPNet)
			found = found || ok && p == w
		}
		if !found {
			errs = append(errs, fmt.Errorf("lacks address %s", w))
		}
	}
	return errors.Join(errs...)
}

func checkRoutes(link netlink.Link, want Interface) error {
	have, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, gw := range want.Gateways {
		found := false
		for i := range have {
			r := &have[i]
			isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified()
			found = found || isDefault && r.Gw.Equal(gw.AsSlice())
		}
		if !found {
			errs = append(errs, fmt.Errorf("lacks the default route via %s", gw))
		}
	}
	return errors.Join(errs...)
}

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// PodNamespace is the path of the network namespace of the pod on a node that has an address, for sockets of this process. A program in the pod would compete
// for the processor with the lowest weight, which shows in what it measures.
func (l *Lab) PodNamespace(node string, ip netip.Addr) (string, error) {
	p, err := l.processOf(node)
	if err != nil {
		return "", fmt.Errorf("find the network namespace of pod %s on %s: %w", ip, node, err)
	}
	// Container runtimes bind their namespaces here, in the node's mount namespace.
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/netns/*", p.Pid))
	if err != nil {
		return "", fmt.Errorf("list the network namespaces of %s: %w", node, err)
	}
	var errs []error
	for _, path := range paths {
		has, err := hasAddress(path, ip)
		if err != nil {
			errs = append(errs, err) // one that goes away just now, perhaps
		}
		if has {
			return path, nil
		}
	}
	return "", errors.Join(fmt.Errorf("none of %d network namespaces on %s has the address %s: want the one of a pod that runs there", len(paths), node, ip), errors.Join(errs...))
}

func hasAddress(namespace string, ip netip.Addr) (has bool, err error) {
	err = netns.Do(namespace, func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			got, ok := netip.AddrFromSlice(a.IP)
			has = has || ok && got.Unmap() == ip
		}
		return err
	})
	return has, err
}

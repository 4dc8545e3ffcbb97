package netdev

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostPrefix begins the host-side names of our veths; hostDigits hex digits follow: 13 of the 15 characters that the kernel allows.
const (
	hostPrefix = "gw"
	hostDigits = 11
)

// HostName is the host-side name of the veth of one interface of one container: the same for the same arguments, so that DEL finds what
// ADD made without a state file.
func HostName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return hostPrefix + hex.EncodeToString(sum[:])[:hostDigits]
}

// Veth is a pair between the host and a container.
type Veth struct {
	// Host is the host-side name.
	Host string
	// Netns is the path of the container's network namespace.
	Netns string
	// Name, MAC and MTU are of the container's side; the host side has the same MTU. MTU is in bytes.
	Name string
	MAC  net.HardwareAddr
	MTU  int
	// Alias is what the host side says of whose it is (ip link: alias), at most 255 characters; none if empty.
	Alias string
	// NoOffload switches TX checksum offload off on both ends, which OVS's userspace datapath needs: it reads the half-made checksums that the
	// kernel leaves for hardware to finish, and connection tracking drops the packets.
	NoOffload bool
}

// CreateVeth makes the pair, its far end straight in the container's namespace, and sets the host side up. A link of the same host-side name
// is replaced: the name derives from the container, so it can only be an earlier attempt's. It returns the host side's MAC address.
func (h Host) CreateVeth(v Veth) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	err := h.do(func() error {
		target, err := netns.GetFromPath(v.Netns)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", errNoNetns, v.Netns, err)
		}
		defer func() { _ = target.Close() }()
		if err := deleteLink(v.Host); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = v.Host, v.MTU
		pair := &netlink.Veth{
			LinkAttrs: attrs, PeerName: v.Name, PeerHardwareAddr: v.MAC, PeerMTU: uint32(v.MTU), PeerNamespace: netlink.NsFd(int(target)),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("create veth %s: network namespace %s already has a link %s: %w", v.Host, v.Netns, v.Name, err)
			}
			return fmt.Errorf("create veth %s with peer %s in %s: %w", v.Host, v.Name, v.Netns, err)
		}
		if mac, err = hostSideUp(v); err != nil {
			return errors.Join(err, deleteLink(v.Host))
		}
		return nil
	})
	return mac, err
}

// hostSideUp prepares the host side, which is Open vSwitch's alone. The kernel's own stack sees its frames too on the userspace datapath: it neither answers
// ARP there, nor forwards, nor takes what claims a source that is not behind this link, which is everything; and it has no IPv6 there.
func hostSideUp(v Veth) (net.HardwareAddr, error) {
	link, err := netlink.LinkByName(v.Host)
	if err != nil {
		return nil, fmt.Errorf("find veth %s: %w", v.Host, err)
	}
	for _, s := range [][2]string{
		{"ipv4/conf/" + v.Host + "/arp_ignore", "8"}, {"ipv4/conf/" + v.Host + "/rp_filter", "1"}, {"ipv4/conf/" + v.Host + "/forwarding", "0"},
		{"ipv6/conf/" + v.Host + "/disable_ipv6", "1"},
	} {
		if err := writeSysctl("net/"+s[0], s[1]); err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel may run without IPv6
			return nil, err
		}
	}
	if v.NoOffload {
		if err := txChecksumOff(v.Host); err != nil {
			return nil, err
		}
	}
	if v.Alias != "" { // the kernel takes none for a link that it makes
		if err := netlink.LinkSetAlias(link, v.Alias); err != nil {
			return nil, fmt.Errorf("set the alias of veth %s: %w", v.Host, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set veth %s up: %w", v.Host, err)
	}
	return link.Attrs().HardwareAddr, nil
}

// Interface is what a container's side of a veth carries.
type Interface struct {
	// Name is the link's name in the container.
	Name string
	MAC  net.HardwareAddr
	// MTU in bytes.
	MTU int
	// Addrs are its addresses with their network's prefix length.
	Addrs []netip.Prefix
	// Gateways are the next hops of the default routes, on-link in the network of an address of the same family.
	Gateways []netip.Addr
	// NoOffload: see Veth.
	NoOffload bool
}

// ConfigureContainer gives the container's side its addresses and default routes and sets it and lo up.
func (Host) ConfigureContainer(nsPath string, i Interface) error {
	return InNetns(nsPath, func() error {
		if lo, err := netlink.LinkByName("lo"); err != nil {
			return fmt.Errorf("find lo in %s: %w", nsPath, err)
		} else if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up in %s: %w", nsPath, err)
		}
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", i.Name, nsPath, err)
		}
		if i.NoOffload {
			if err := txChecksumOff(i.Name); err != nil {
				return err
			}
		}
		if err := containerSysctls(i); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up in %s: %w", i.Name, nsPath, err)
		}
		for _, a := range i.Addrs {
			if err := netlink.AddrReplace(link, address(a)); err != nil {
				return fmt.Errorf("add address %s to %s in %s: %w", a, i.Name, nsPath, err)
			}
		}
		for _, gw := range i.Gateways {
			route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: anyNet(gw), Gw: gw.AsSlice()}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("add default route via %s dev %s in %s: %w", gw, i.Name, nsPath, err)
			}
		}
		return nil
	})
}

// containerSysctls switches IPv6 on where the runtime left it off and the container has an address of it, with a link-local address of the MAC, the only one
// that OVN lets through. Router advertisements are never listened to: addresses and routes are the controller's to decide.
func containerSysctls(i Interface) error {
	if err := writeSysctl("net/ipv6/conf/"+i.Name+"/accept_ra", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !slices.ContainsFunc(i.Addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		return nil
	}
	for _, s := range [][2]string{{"all/disable_ipv6", "0"}, {"default/disable_ipv6", "0"}, {i.Name + "/addr_gen_mode", "0"}, {i.Name + "/disable_ipv6", "0"}} {
		if err := writeSysctl("net/ipv6/conf/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// PeerIndex is the index that the other end of a veth has in its own namespace, whatever it is called there.
func (h Host) PeerIndex(name string) (index int, err error) {
	err = h.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			if isNoLink(err) {
				return fmt.Errorf("%w: %s", ErrNoLink, name)
			}
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if index = link.Attrs().ParentIndex; index == 0 {
			return fmt.Errorf("link %s is a %s, and has no other end", name, link.Type())
		}
		return nil
	})
	return index, err
}

// HostSide is the host's end of one of our veths.
type HostSide struct {
	Name string
	// Index is the link's: another link of the name has another.
	Index int
	// Alias is what CreateVeth was told, empty if nothing.
	Alias string
}

// HostSides are the host's ends of the veths that CreateVeth has made, by their names, in the kernel's order.
func (h Host) HostSides() ([]HostSide, error) {
	var out []HostSide
	err := h.do(func() error {
		links, err := dump(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		for _, l := range links {
			if a := l.Attrs(); l.Type() == "veth" && isHostName(a.Name) {
				out = append(out, HostSide{Name: a.Name, Index: a.Index, Alias: a.Alias})
			}
		}
		return nil
	})
	return out, err
}

// isHostName says whether a name is one that HostName makes.
func isHostName(name string) bool {
	digits, ok := strings.CutPrefix(name, hostPrefix)
	return ok && len(digits) == hostDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// DeleteIndex removes the link of an index and no other that has got its name meanwhile. Removing the absent succeeds.
func (h Host) DeleteIndex(index int) error {
	return h.do(func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: index}}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete link %d: %w", index, err)
		}
		return nil
	})
}

// DeleteLink removes a link; the other end of a veth goes with it. Removing the absent succeeds.
func (h Host) DeleteLink(name string) error { return h.do(func() error { return deleteLink(name) }) }

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		if isNoLink(err) {
			return nil
		}
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func isNoLink(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// address is a with duplicate address detection off: OVN answers for nobody else's addresses, and an address that is tentative for a second
// delays the pod's first packet by as much.
func address(a netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// anyNet is the default route's destination in the family of a.
func anyNet(a netip.Addr) *net.IPNet {
	return ipNet(netip.PrefixFrom(unspecified(a), 0))
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

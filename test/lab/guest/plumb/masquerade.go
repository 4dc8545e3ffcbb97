package plumb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// The network between a masqueraded guest and its pod, KubeVirt's defaults.
var (
	insideGateway = netip.MustParsePrefix("10.0.2.1/24")
	insideGuest   = netip.MustParsePrefix("10.0.2.2/24")
	insideMAC     = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
)

// masquerade hides the guest behind the pod, which keeps its link and addresses.
func masquerade(n guest.NIC, pod podLink, _ int) (Port, error) {
	mac, err := guestMAC(n, randomMAC())
	if err != nil {
		return Port{}, err
	}
	if !pod.ipv4().IsValid() {
		return Port{}, fmt.Errorf("the pod's link %s has no IPv4 address: masquerade is stood in for by IPv4 only", n.Link)
	}
	bridgeName, tap, _ := names(n.Link)
	br, err := addBridge(bridgeName, tap, insideMAC, pod.mtu)
	if err != nil {
		return Port{}, err
	}
	if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(insideGateway)}); err != nil {
		return Port{}, fmt.Errorf("give %s address %s: %w", bridgeName, insideGateway, err)
	}
	if err := errors.Join(sysctl("ipv4/ip_forward", "1"), translate(n.Link, bridgeName)); err != nil {
		return Port{}, err
	}
	n.MAC = mac.String()
	return Port{
		Plumbed: guest.Plumbed{NIC: n, PodMAC: pod.mac.String(), Addresses: pod.addrs, MTU: pod.mtu, DHCP: true}, Tap: tap, Bridge: bridgeName,
		Lease: &Lease{MAC: mac, Address: insideGuest, Server: insideGateway.Addr(), Router: insideGateway.Addr(), MTU: pod.mtu},
	}, nil
}

// translate sends what comes to the pod on to the guest, and what the guest sends out under the pod's address.
func translate(link, bridge string) error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := nft.AddTable(&nftables.Table{Name: "kubevirt-" + link, Family: nftables.TableFamilyIPv4})
	in := nft.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	out := nft.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	guestIP := insideGuest.Addr().AsSlice()
	nft.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(onLink(expr.MetaKeyIIFNAME, link),
		&expr.Immediate{Register: 1, Data: guestIP},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	)})
	const sourceOffset, addressLength = 12, 4 // of an IPv4 header
	nft.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: append(onLink(expr.MetaKeyOIFNAME, link),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceOffset, Len: addressLength},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: guestIP},
		&expr.Masq{},
	)})
	if err := nft.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s, for %s behind %s: %w: does the kernel have nf_tables and its NAT?", table.Name, bridge, link, err)
	}
	return nil
}

// onLink matches the name of a packet's link.
func onLink(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}

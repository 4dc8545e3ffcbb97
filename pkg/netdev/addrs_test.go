package netdev

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel makes a temporary address beside a managed one; that of IPv4 which is the second of its network has the same flag, and is not one.
func TestAddrsTellTemporaryOnes(t *testing.T) {
	h := newHost(t)
	addLink(t, h, "eth9")
	managed := address(netip.MustParsePrefix("fd00:1::5/64"))
	managed.Flags |= unix.IFA_F_MANAGETEMPADDR
	if err := h.do(func() error {
		link, err := netlink.LinkByName("eth9")
		if err != nil {
			return err
		}
		return errors.Join(writeSysctl("net/ipv6/conf/eth9/disable_ipv6", "0"), writeSysctl("net/ipv6/conf/eth9/accept_dad", "0"), writeSysctl("net/ipv6/conf/eth9/use_tempaddr", "2"),
			netlink.LinkSetUp(link), netlink.AddrAdd(link, address(netip.MustParsePrefix("192.0.2.7/24"))), netlink.AddrAdd(link, address(netip.MustParsePrefix("192.0.2.8/24"))),
			netlink.AddrAdd(link, managed))
	}); err != nil {
		t.Fatal(err)
	}
	var addrs []HostAddr
	for deadline := time.Now().Add(10 * time.Second); len(addrs) < 4 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) { // it is tentative for a moment
		var err error
		if addrs, err = h.Addrs(); err != nil {
			t.Fatal(err)
		}
	}
	temporary := 0
	for _, a := range addrs {
		if a.Temporary {
			temporary++
		}
		if fixed := a.Addr.Addr().Is4() || a.Addr.Addr() == netip.MustParseAddr("fd00:1::5"); fixed == a.Temporary {
			t.Errorf("%s is temporary: %v", a.Addr, a.Temporary)
		}
	}
	if len(addrs) != 4 || temporary != 1 {
		t.Errorf("addresses %+v, want three and a temporary one", addrs)
	}
}

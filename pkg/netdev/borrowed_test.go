package netdev

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A borrowed address is the host's for a while: it is added and refreshed, is none of Addrs, and the kernel takes it away by itself. Nobody else's address is touched.
func TestBorrowed(t *testing.T) {
	node, far := newHost(t), newHost(t)
	if _, err := node.CreateVeth(Veth{Host: "eth0", Netns: far.Netns, Name: "far", MTU: 1500}); err != nil {
		t.Fatal(err)
	}
	own := netip.MustParsePrefix("192.0.2.1/24")
	if err := node.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(writeSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"), netlink.AddrAdd(link, address(own))) // this one is no pod's
	}); err != nil {
		t.Fatal(err)
	}
	const lent = 5 * time.Second // long enough for what follows on a busy machine
	want := []Borrowed{{"eth0", netip.MustParseAddr("192.0.2.77")}, {"eth0", netip.MustParseAddr("2001:db8::77")}}
	for _, life := range []time.Duration{-time.Second, 0, ShortestLoan - 1, LongestLoan + 1} { // the kernel takes none for ever
		if _, err := node.SyncBorrowed(want, life); !errors.Is(err, ErrBadLoan) || slices.Contains(addrsOf(t, node), want[0].Addr) {
			t.Errorf("borrowed for %s: %v, want %v", life, err, ErrBadLoan)
		}
	}
	for i, added := range []int{2, 0} {
		got, err := node.SyncBorrowed(want, lent)
		if err != nil || len(got.Added) != added || len(got.On) != len(want) {
			t.Fatalf("time %d: %+v (%v), want %d new ones of %v", i, got, err, added, want)
		}
	}
	addrs, err := node.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(addrs, func(a HostAddr) bool { return a.Addr.Addr() == want[0].Addr || a.Addr.Addr() == want[1].Addr }) {
		t.Errorf("borrowed addresses are among the host's own: %v", addrs)
	}
	if got := addrsOf(t, node); !slices.Contains(got, want[0].Addr) || !slices.Contains(got, want[1].Addr) {
		t.Errorf("the host has %v, want %v too", got, want)
	}
	bad := []Borrowed{{"eth0", own.Addr()}, {"eth7", want[1].Addr}}
	if got, err := node.SyncBorrowed(append(bad, want[1]), lent); !errors.Is(err, ErrOwnAddress) || !slices.Equal(got.On, want[1:]) || len(got.Added) > 0 {
		t.Errorf("the host has %+v (%v), want %v on it whatever the others are", got, err, want[1])
	}
	if got := addrsOf(t, node); slices.Contains(got, want[0].Addr) || !slices.Contains(got, own.Addr()) {
		t.Errorf("the host has %v, want %s and not %s", got, own.Addr(), want[0].Addr)
	}
	deadline := time.Now().Add(time.Minute)
	for slices.Contains(addrsOf(t, node), want[1].Addr) {
		if time.Now().After(deadline) {
			t.Fatal("an address that was borrowed for a few seconds is still there")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// What looks like a borrowed address, and is not, stays as it is: the host's own, of somebody who removes it when it is time.
func TestBorrowedOwn(t *testing.T) {
	node, far := newHost(t), newHost(t)
	if _, err := node.CreateVeth(Veth{Host: "eth0", Netns: far.Netns, Name: "far", MTU: 1500}); err != nil {
		t.Fatal(err)
	}
	own := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("2001:db8::1/128"), netip.MustParsePrefix("2001:db8::2/64"),
	}
	lives := []int{math.MaxUint32, 3600, math.MaxUint32, 3600} // the first is for ever
	if err := node.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		err = writeSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
		for i, p := range own {
			a := address(p)
			a.Flags, a.ValidLft = unix.IFA_F_NOPREFIXROUTE|unix.IFA_F_NODAD, lives[i]
			err = errors.Join(err, netlink.AddrAdd(link, a))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := node.SyncBorrowed(nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, p := range own {
		if _, err := node.SyncBorrowed([]Borrowed{{"eth0", p.Addr()}}, time.Second); !errors.Is(err, ErrOwnAddress) {
			t.Errorf("%s was borrowed: %v, want %v", p.Addr(), err, ErrOwnAddress)
		}
	}
	time.Sleep(2 * time.Second)
	for _, p := range own {
		if !slices.Contains(addrsOf(t, node), p.Addr()) {
			t.Errorf("%s is gone", p.Addr())
		}
	}
}

// A link that takes over what another has keeps its borrowed addresses, however often it does so, and they are never taken for the host's own. What only looks like one is removed as any other.
func TestTakeOverLeavesBorrowed(t *testing.T) {
	node := newHost(t)
	for _, name := range []string{"eth1", "br"} {
		addLink(t, node, name)
	}
	own, looksBorrowed := netip.MustParsePrefix("198.51.100.11/24"), netip.MustParsePrefix("198.51.100.12/32")
	if err := node.do(func() error {
		link, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		a := address(looksBorrowed)
		a.Flags, a.ValidLft = unix.IFA_F_NOPREFIXROUTE, 3600
		return errors.Join(writeSysctl("net/ipv6/conf/br/disable_ipv6", "0"), netlink.AddrAdd(link, a))
	}); err != nil {
		t.Fatal(err)
	}
	held := Holdings{Addresses: []netip.Prefix{own}}
	want := []Borrowed{{"br", netip.MustParseAddr("198.51.100.77")}, {"br", netip.MustParseAddr("fd00:1::77")}}
	for i, added := range []int{2, 0, 0} {
		if err := node.TakeOver("br", "eth1", held); err != nil {
			t.Fatal(err)
		}
		got, err := node.SyncBorrowed(want, LongestLoan)
		if err != nil || len(got.On) != len(want) || len(got.Added) != added {
			t.Fatalf("time %d: %+v (%v), want %d new ones of %v", i, got, err, added, want)
		}
	}
	if got, err := node.Holdings("br"); err != nil || !slices.Equal(got.Addresses, held.Addresses) {
		t.Errorf("br holds %v (%v), want %v", got.Addresses, err, held.Addresses)
	}
	if got := addrsOf(t, node); slices.Contains(got, looksBorrowed.Addr()) {
		t.Errorf("the host has %v, %s among them", got, looksBorrowed.Addr())
	}
}

// addrsOf are the addresses of a host, whatever their state.
func addrsOf(t *testing.T, h Host) (out []netip.Addr) {
	t.Helper()
	err := h.do(func() error {
		list, err := netlink.AddrList(nil, unix.AF_UNSPEC)
		for _, a := range list {
			p, _ := prefix(a.IPNet)
			out = append(out, p.Addr())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

package traffic

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// network is two hosts and the cable between them.
type network struct {
	here, there   *netns.Namespace
	here4, there4 netip.Addr
	here6, there6 netip.Addr
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{
		here4: netip.MustParseAddr("10.9.0.1"), there4: netip.MustParseAddr("10.9.0.2"),
		here6: netip.MustParseAddr("fd09::1"), there6: netip.MustParseAddr("fd09::2"),
	}
	for _, ns := range []**netns.Namespace{&n.here, &n.there} {
		var err error
		if *ns, err = netns.New(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*ns).Close)
	}
	err := n.there.Do(func() error {
		self, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(self) }()
		return n.here.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(self)})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	up(t, n.here, n.here4, n.here6)
	up(t, n.there, n.there4, n.there6)
	return n
}

func up(t *testing.T, ns *netns.Namespace, addrs ...netip.Addr) {
	t.Helper()
	if err := ns.Do(func() error {
		var errs []error
		for _, name := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			errs = append(errs, netlink.LinkSetUp(link))
			if name == "lo" {
				continue
			}
			for _, a := range addrs {
				errs = append(errs, netlink.AddrAdd(link, address(a)))
			}
		}
		return errors.Join(errs...)
	}); err != nil {
		t.Fatal(err)
	}
}

func address(a netip.Addr) *netlink.Addr {
	bits := map[bool]int{true: 24, false: 64}[a.Is4()]
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: unix.IFA_F_NODAD}
}

// serve runs a server in a namespace for the test and returns a client of it.
func serve(t *testing.T, ns *netns.Namespace, at netip.Addr) *Client {
	t.Helper()
	place := Place{Namespace: ns.Path()}
	s, err := Listen(t.Context(), ServerConfig{Place: place, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	background(t, s.Serve)
	c := NewClient(place, netip.AddrPortFrom(at, ControlPort))
	if err := c.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// background runs f until the test ends, and waits for it.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// cut drops everything that reaches a namespace for a time, and returns how long that was at least and at most.
func cut(t *testing.T, ns *netns.Namespace, length time.Duration) (least, most time.Duration) {
	t.Helper()
	err := ns.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: "cut", Family: nftables.TableFamilyINet})
		drop := nftables.ChainPolicyDrop
		conn.AddChain(&nftables.Chain{
			Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		before := time.Now()
		if err := conn.Flush(); err != nil {
			return err
		}
		from := time.Now()
		time.Sleep(length)
		to := time.Now()
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			return err
		}
		least, most = to.Sub(from), time.Since(before)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return least, most
}

package conntrack

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// tracked are a client and a server, two network namespaces on one link, of which the server's lets nothing in that is invalid to its zone 7.
type tracked struct {
	client, server *netns.Namespace
	listener       net.Listener
}

const trackedRules = `table inet tracked {
	chain in { type filter hook prerouting priority raw; ct zone set 7; }
	chain out { type filter hook output priority raw; ct zone set 7; }
	chain refuse { type filter hook input priority filter; ct state invalid drop; }
}
`

func newTracked(t *testing.T) *tracked {
	t.Helper()
	s := &tracked{}
	for _, ns := range []**netns.Namespace{&s.client, &s.server} {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		*ns = n
	}
	up := func(name, address string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	}
	root, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	err = s.server.Do(func() error {
		rules := root.Command(t.Context(), "nft", "-f", "-")
		rules.Stdin = strings.NewReader(trackedRules)
		if out, err := rules.CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
		return nil
	})
	if err == nil {
		err = s.client.Do(func() error {
			return errors.Join(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "client"}, PeerName: "server"}), up("client", "192.0.2.1/24"), s.give("server"))
		})
	}
	if err == nil {
		err = s.server.Do(func() (err error) {
			if err := up("server", "192.0.2.2/24"); err != nil {
				return err
			}
			s.listener, err = net.Listen("tcp", "192.0.2.2:7")
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.listener.Close() })
	return s
}

// give gives a link of the client's to the server.
func (s *tracked) give(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	file, err := syscall.Open(s.server.Path(), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetNsFd(link, file), syscall.Close(file))
}

// connect opens a connection and has something sent both ways.
func (s *tracked) connect(t *testing.T) (client, server net.Conn) {
	t.Helper()
	if err := s.client.Do(func() (err error) { client, err = net.Dial("tcp", "192.0.2.2:7"); return err }); err != nil {
		t.Fatal(err)
	}
	server, err := s.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(client.Close(), server.Close()) })
	exchange(t, client, server)
	return client, server
}

func exchange(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := io.WriteString(way[0], "x"); err != nil {
			t.Fatal(err)
		}
		if err := way[1].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelResets: a connection whose entry was taken out of the zone and put in again as a hand-off does goes on, and can be reset. With the flag that the highest acknowledgement is known
// the kernel would take half of all RSTs for invalid, those whose sequence number is beyond the half of them.
func TestKernelResets(t *testing.T) {
	s := newTracked(t)
	var table *Table
	if err := s.server.Do(func() (err error) { table, err = Open(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
	const connections = 16
	type pair struct{ client, server net.Conn }
	var pairs []pair
	for range connections {
		client, server := s.connect(t)
		pairs = append(pairs, pair{client, server})
	}
	d, err := table.Dump(t.Context(), Query{Zones: []Zone{7}, Limit: 2 * connections})
	mine := d.Entries[7]
	if err != nil || len(mine) != connections {
		t.Fatalf("%d entries, %v, want %d", len(mine), err, connections)
	}
	if n, err := table.Remove(t.Context(), 7, mine); err != nil || n != connections {
		t.Fatalf("%d removed, %v, want %d", n, err, connections)
	}
	if r := upsert(t, table, 7, mine...); r.Made != connections {
		t.Fatalf("%+v, want %d made", r, connections)
	}
	for _, p := range pairs {
		exchange(t, p.client, p.server)
	}
	for i, p := range pairs {
		if err := errors.Join(p.client.(*net.TCPConn).SetLinger(0), p.client.Close(), p.server.SetReadDeadline(time.Now().Add(5*time.Second))); err != nil {
			t.Fatal(err)
		}
		if _, err := p.server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d that the client has reset: %v, want %v", i, err, syscall.ECONNRESET)
		}
	}
}

package ovntest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestTwoHostsCarryTraffic proves the whole chain: NB rows become flows on two hosts, and a TCP connection crosses a Geneve tunnel between them.
func TestTwoHostsCarryTraffic(t *testing.T) {
	c := Central(t)
	hosts := []*OVSHost{Host(t, c, "one"), Host(t, c, "two")}
	nbctl(t, c, "ls-add", "ls")
	for i, h := range hosts {
		h.ConfigureChassis(t, c)
		nbctl(t, c, "lsp-add", "ls", h.Name, "--", "lsp-set-addresses", h.Name, fmt.Sprintf("0a:00:00:00:00:0%d 10.9.0.%d", i+1, i+1))
		h.vsctl(t, c, "--no-wait", "--may-exist", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail-mode=secure")
		h.vsctl(t, c, "--timeout=20", "add-port", "br-int", "p0", "--", "set", "interface", "p0", "type=internal", "external_ids:iface-id="+h.Name,
			fmt.Sprintf("mac=\"0a:00:00:00:00:0%d\"", i+1))
		if err := h.Do(func() error { return address("p0", netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/24", i+1))) }); err != nil {
			t.Fatal(err)
		}
	}
	nbctl(t, c, "--timeout=30", "--wait=hv", "sync")

	var listener net.Listener
	if err := hosts[1].Do(func() (err error) { listener, err = net.Listen("tcp", "10.9.0.2:7"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			_, _ = fmt.Fprintf(conn, "%s", conn.RemoteAddr().(*net.TCPAddr).IP)
			_ = conn.Close()
		}
	}()
	got := make([]byte, 64)
	var n int
	err := hosts[0].Do(func() error {
		conn, err := net.DialTimeout("tcp", "10.9.0.2:7", 10*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		n, err = conn.Read(got)
		return err
	})
	if err != nil || string(got[:n]) != "10.9.0.1" {
		t.Errorf("the other host's server answered %q (%v), want the client's address 10.9.0.1", got[:n], err)
	}
}

// TestNothingIsLeft counts what a test with a central and a host leaves behind.
func TestNothingIsLeft(t *testing.T) {
	before := processes(t)
	t.Run("inner", func(t *testing.T) { Host(t, Central(t), "one") })
	if after := processes(t); after != before {
		t.Errorf("%d children of the test after, %d before", after, before)
	}
}

func processes(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, task := range tasks {
		children, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			count += len(strings.Fields(string(children)))
		}
	}
	return count
}

func nbctl(t *testing.T, c *OVNCentral, args ...string) {
	t.Helper()
	run(t, c.root.Command(t.Context(), "ovn-nbctl", append([]string{"--db=" + c.NB}, args...)...))
}

func address(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if err := checksumOff(link); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

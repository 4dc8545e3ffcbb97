package ovntest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// Underlay is the bridge that carries a host's underlay addresses: a userspace datapath tunnels over a bridge's own port.
const Underlay = "br-phys"

// OVSHost is a network namespace with Open vSwitch, userspace datapath, and an ovn-controller that waits to be configured.
type OVSHost struct {
	// Name is the host's name.
	Name string
	// Endpoint is the local Open_vSwitch database, "unix:/…".
	Endpoint string
	// UnderlayIPs are the addresses on Underlay, IPv4 and IPv6; all hosts of a central reach one another on them.
	UnderlayIPs []netip.Prefix
	// RunDir holds the daemons' control sockets.
	RunDir string

	ns *netns.Namespace
	// root has the programs.
	root *packages.Root
	// database is the local database's server.
	database *os.Process
}

// NetnsPath is the host's network namespace.
func (h *OVSHost) NetnsPath() string { return h.ns.Path() }

// Do runs f in the host's network namespace, on a thread of its own, see netns.Do.
func (h *OVSHost) Do(f func() error) error { return netns.Do(h.ns.Path(), f) }

// Host starts a host that belongs to the central's underlay. No external_ids are set: chassis configuration is the agent's, and ConfigureChassis is for
// tests that have no agent.
func Host(t testing.TB, c *OVNCentral, name string) *OVSHost {
	t.Helper()
	c.mu.Lock()
	c.hosts++
	n := c.hosts
	c.mu.Unlock()
	dir := filepath.Join(c.dir, fmt.Sprintf("h%d", n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &OVSHost{
		Name: name, root: c.root, RunDir: dir, ns: namespace(t), Endpoint: "unix:" + filepath.Join(dir, "db.sock"),
		UnderlayIPs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("172.30.1.%d/24", 10+n)), netip.MustParsePrefix(fmt.Sprintf("fd00:172:30:1::%x/64", 0x10+n)),
		},
	}
	if err := c.ns.Do(func() error { return plug(n, h.ns) }); err != nil {
		t.Fatalf("connect %s to the underlay: %v", name, err)
	}
	h.database = serve(t, server{root: c.root, ns: h.ns, dir: dir, name: "db", schema: "usr/share/openvswitch/vswitch.ovsschema"})
	h.vsctl(t, c, "--no-wait", "init")
	h.vsctl(t, c, "--no-wait", "add-br", Underlay, "--", "set", "bridge", Underlay, "datapath_type=netdev",
		fmt.Sprintf("other-config:hwaddr=02:67:00:00:00:%02x", n), "--", "add-port", Underlay, "eth1")
	for _, d := range [][]string{
		{"ovs-vswitchd", "--unixctl=" + filepath.Join(dir, "ovs-vswitchd.ctl"), "-vconsole:info", h.Endpoint},
		{"ovn-controller", "-vconsole:info", h.Endpoint},
	} {
		cmd := c.root.Command(t.Context(), d[0], d[1:]...)
		cmd.Env = append(cmd.Env, h.environ()...)
		cmd.Cancel = func() error { return nil }
		daemon(t, h.ns, cmd, filepath.Join(dir, d[0]+".log"))
	}
	// Returns when ovs-vswitchd has made the bridge's port.
	h.vsctl(t, c, "--timeout=20", "set", "open_vswitch", ".", "external_ids:ovntest=up")
	h.vsctl(t, c, "--no-wait", "remove", "open_vswitch", ".", "external_ids", "ovntest")
	if err := h.Do(h.address); err != nil {
		t.Fatalf("address %s of %s: %v", Underlay, name, err)
	}
	return h
}

// ConfigureChassis does what the agent does for ovn-controller: a chassis with the host's name and a Geneve tunnel over IPv4.
func (h *OVSHost) ConfigureChassis(t testing.TB, c *OVNCentral) {
	t.Helper()
	h.configure(t, c, c.SB)
}

func (h *OVSHost) configure(t testing.TB, c *OVNCentral, remote string) {
	t.Helper()
	h.vsctl(t, c, "set", "open_vswitch", ".", "external_ids:system-id="+h.Name, "external_ids:ovn-remote="+remote, "external_ids:ovn-encap-type=geneve",
		"external_ids:ovn-encap-ip="+h.UnderlayIPs[0].Addr().String(), "external_ids:ovn-bridge-datapath-type=netdev", "external_ids:ovn-monitor-all=true")
}

// FreezeDatabase lets the local database's server hang until thaw is called.
func (h *OVSHost) FreezeDatabase(t testing.TB) (thaw func()) {
	t.Helper()
	signal := func(s os.Signal) {
		t.Helper()
		if err := h.database.Signal(s); err != nil {
			t.Fatalf("%s to ovsdb-server of %s: %v", s, h.Name, err)
		}
	}
	signal(unix.SIGSTOP)
	return func() { t.Helper(); signal(unix.SIGCONT) }
}

// environ makes the daemons keep to the host's directory; ovn-controller 23.03 has no option for it.
func (h *OVSHost) environ() []string {
	var env []string
	for _, v := range []string{"OVS_RUNDIR", "OVS_LOGDIR", "OVN_RUNDIR", "OVN_LOGDIR", "OVS_SYSCONFDIR", "OVN_SYSCONFDIR"} {
		env = append(env, v+"="+h.RunDir)
	}
	return env
}

// AddFlow adds a flow to a bridge, in the words of ovs-ofctl(8).
func (h *OVSHost) AddFlow(t testing.TB, bridge, flow string) {
	t.Helper()
	h.ofctl(t, "add-flow", bridge, flow)
}

// DeleteFlows deletes all flows of a bridge.
func (h *OVSHost) DeleteFlows(t testing.TB, bridge string) {
	t.Helper()
	h.ofctl(t, "del-flows", bridge)
}

func (h *OVSHost) ofctl(t testing.TB, command, bridge string, args ...string) {
	t.Helper()
	target := "unix:" + filepath.Join(h.RunDir, bridge+".mgmt")
	run(t, h.root.Command(t.Context(), "ovs-ofctl", append([]string{"-O", "OpenFlow15", command, target}, args...)...))
}

// Control asks ovs-vswitchd to do something, in the words of ovs-appctl(8), and returns what it says.
func (h *OVSHost) Control(t testing.TB, command string, args ...string) string {
	t.Helper()
	out, err := h.root.Command(t.Context(), "ovs-appctl", append([]string{"--target=" + filepath.Join(h.RunDir, "ovs-vswitchd.ctl"), command}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ovs-appctl %s: %v: %s", command, err, out)
	}
	return string(out)
}

func (h *OVSHost) vsctl(t testing.TB, c *OVNCentral, args ...string) {
	t.Helper()
	run(t, c.root.Command(t.Context(), "ovs-vsctl", append([]string{"--db=" + h.Endpoint}, args...)...))
}

// plug connects the namespace's eth1 to the wire; it runs in the central's namespace.
func plug(n int, ns *netns.Namespace) error {
	fd, err := unix.Open(ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	name := fmt.Sprintf("h%d", n)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth1", PeerNamespace: netlink.NsFd(fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	br, err := netlink.LinkByName(wire)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(veth, br); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	return ns.Do(func() error {
		eth1, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		if err := errors.Join(checksumOff("eth1"), silence("eth1")); err != nil {
			return err
		}
		return netlink.LinkSetUp(eth1)
	})
}

// address gives the underlay bridge's port its addresses.
func (h *OVSHost) address() error {
	link, err := netlink.LinkByName(Underlay)
	if err != nil {
		return err
	}
	if err := checksumOff(Underlay); err != nil {
		return err
	}
	for _, p := range h.UnderlayIPs {
		addr, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // the network is ours: nothing to wait for
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// silence keeps the kernel from answering on a link that belongs to the userspace datapath: it would tell the link's MAC address instead of the bridge's.
func silence(link string) error {
	// The files are those of the calling thread's namespace.
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/conf/"+link+"/arp_ignore", []byte("8"), 0o644),
		os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0o644),
	)
}

// checksumOff makes the kernel complete checksums before a userspace datapath reads the packet.
func checksumOff(link string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	return e.Change(link, map[string]bool{"tx-checksum-ip-generic": false})
}

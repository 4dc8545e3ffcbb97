package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/kernel/control"
	"github.com/godwit-cni/godwit/test/kernel/vm"
)

// OVN's databases, beside the machine.
const (
	nbPort   = 6641
	sbPort   = 6642
	nbSocket = "nb.sock"
	sbSocket = "sb.sock"
)

// Every node's namespace has an address in vm.Network, on eth0, at a bridge that reaches what is beside the machine; and one for its tunnels, on eth1.
const (
	// firstNode is the last byte of the first node's addresses.
	firstNode = 11
	// outside is that of who is no node.
	outside  = 200
	underlay = "underlay"
	logDir   = "/var/log"
	// switchSchemas has Open vSwitch's schema.
	switchSchemas = "/usr/share/openvswitch"
	// probeInterval of connections to the databases, in milliseconds.
	probeInterval = "inactivity_probe=60000"
)

// underlayNet is the network of the tunnels.
var underlayNet = netip.MustParsePrefix("172.31.1.0/24")

// host is an address of a network.
func host(network netip.Prefix, n int) netip.Addr {
	b := network.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

// Node is a node of the cluster: a network namespace of that name with Open vSwitch in the kernel, ovn-controller and an agent.
type Node struct {
	// Name is that of the Node object, of the chassis, and of the namespace.
	Name string
	// Underlay is where its tunnels end.
	Underlay netip.Addr

	address netip.Addr
	cluster *Cluster
	// agent is that of its process.
	agent int
}

// dir is where the node's daemons have their sockets, its database and what its agent installs.
func (n *Node) dir() string { return "/run/" + n.Name }

func (n *Node) socket() string { return filepath.Join(n.dir(), "db.sock") }

// startOVN starts the databases, northd and the nodes. ovn-controllers wait for their agents.
func (c *Cluster) startOVN(ctx context.Context, nodes int) error {
	if _, err := c.In(ctx, "", "ip", "link", "add", underlay, "up", "type", "bridge"); err != nil {
		return err
	}
	for i := range nodes {
		c.Nodes = append(c.Nodes, &Node{
			Name: fmt.Sprintf("node%d", i+1), Underlay: host(underlayNet, firstNode+i), address: host(vm.Network, firstNode+i), cluster: c,
		})
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startCentral(ctx) })
	for _, n := range c.Nodes {
		g.Go(func() error { return n.start(ctx) })
	}
	return g.Wait()
}

// shell runs a script in the machine; its first failing command is its error.
func (c *Cluster) shell(ctx context.Context, script string) error {
	_, err := c.In(ctx, "", "bash", "-ec", script)
	return err
}

// link is a script that connects a namespace to a bridge of the machine.
func link(ns, name, bridge string, address netip.Prefix) string {
	return strings.NewReplacer("NS", ns, "LINK", name, "BRIDGE", bridge, "ADDRESS", address.String()).Replace(`
		ip link add NS-LINK type veth peer name LINK netns NS
		ip link set NS-LINK up master BRIDGE
		ip -n NS link set LINK up
		ip -n NS address add ADDRESS dev LINK
	`)
}

// Outside makes a namespace on the network of the tunnels that is no node, with an address of that network, for who is outside of the cluster. Deleting the
// namespace removes all of it.
func (c *Cluster) Outside(ctx context.Context, ns string) (netip.Addr, error) {
	addr := host(underlayNet, outside)
	script := strings.ReplaceAll("ip netns add NS\nip -n NS link set lo up", "NS", ns) + link(ns, "eth1", underlay, netip.PrefixFrom(addr, underlayNet.Bits()))
	return addr, c.shell(ctx, script)
}

// startCentral starts the databases and northd beside the machine.
func (c *Cluster) startCentral(ctx context.Context) error {
	for _, db := range []struct {
		name, schema, socket, ctl, connections string
		port                                   int
	}{
		{"nb", "usr/share/ovn/ovn-nb.ovsschema", nbSocket, "ovn-nbctl", "db:OVN_Northbound,NB_Global,connections", nbPort},
		{"sb", "usr/share/ovn/ovn-sb.ovsschema", sbSocket, "ovn-sbctl", "db:OVN_Southbound,SB_Global,connections", sbPort},
	} {
		schema, err := c.ovn.Path(db.schema)
		if err != nil {
			return err
		}
		if out, err := c.ovn.Command(ctx, "ovsdb-tool", "create", c.file(db.name+".db"), schema).CombinedOutput(); err != nil {
			return fmt.Errorf("create the database %s: %w: %s", db.name, err, out)
		}
		p, err := c.beside(c.ovn.Command(ctx, "ovsdb-server", "--remote=punix:"+c.file(db.socket), "--remote="+db.connections,
			"--unixctl="+c.file(db.name+".ctl"), "-vconsole:info", c.file(db.name+".db")))
		if err != nil {
			return err
		}
		// Who is slow because its processor is emulated has not gone; the default is five seconds.
		if err := awaitProcesses(ctx, "start the database "+db.name, []*process{p}, func(ctx context.Context) error {
			_, err := c.ctl(ctx, db.ctl, db.socket, []string{"set-connection", fmt.Sprintf("ptcp:%d", db.port), "--", "set", "connection", ".", probeInterval})
			return err
		}); err != nil {
			return err
		}
	}
	_, err := c.beside(c.ovn.Command(ctx, "ovn-northd", "--ovnnb-db=unix:"+c.file(nbSocket), "--ovnsb-db=unix:"+c.file(sbSocket), "--unixctl="+c.file("northd.ctl"), "-vconsole:info"))
	return err
}

// start makes the node's namespace and starts Open vSwitch and ovn-controller as their containers do (yamls/ovn.yaml).
func (n *Node) start(ctx context.Context) error {
	c := n.cluster
	script := "ip netns add NODE\nip -n NODE link set lo up\nmkdir -p DIR" + link(n.Name, "eth0", vm.Bridge, netip.PrefixFrom(n.address, vm.Network.Bits())) +
		link(n.Name, "eth1", underlay, netip.PrefixFrom(n.Underlay, underlayNet.Bits()))
	if err := c.shell(ctx, strings.NewReplacer("NODE", n.Name, "DIR", n.dir()).Replace(script)); err != nil {
		return err
	}
	if err := n.ovsDaemon(ctx, "ovsdb", "ovsdb-server", "--unixctl="+n.dir()+"/ovsdb-server.ctl"); err != nil {
		return err
	}
	if err := c.awaitFile(ctx, n.socket()); err != nil {
		return err
	}
	if _, err := n.VSCtl(ctx, "--no-wait", "init", "--", "set", "open_vswitch", ".", "external_ids:ovn-remote-probe-interval=60000", "external_ids:ovn-openflow-probe-interval=60"); err != nil {
		return err
	}
	if err := n.ovsDaemon(ctx, "vswitchd", "ovs-vswitchd", "--unixctl="+n.vswitchd()); err != nil {
		return err
	}
	return n.ovsDaemon(ctx, "controller", "ovn-controller")
}

func (n *Node) vswitchd() string { return filepath.Join(n.dir(), "ovs-vswitchd.ctl") }

// environ makes the daemons keep to the node's directory; ovn-controller 23.03 has no option for it.
func (n *Node) environ() []string {
	var env []string
	for _, v := range []string{"OVS_RUNDIR", "OVS_LOGDIR", "OVN_RUNDIR", "OVN_LOGDIR", "OVS_SYSCONFDIR", "OVN_SYSCONFDIR"} {
		env = append(env, v+"="+n.dir())
	}
	return env
}

// VSCtl runs ovs-vsctl on the node.
func (n *Node) VSCtl(ctx context.Context, args ...string) (string, error) {
	return n.In(ctx, append([]string{"ovs-vsctl", "--db=unix:" + n.socket(), "--timeout=30"}, args...)...)
}

// AppCtl runs ovs-appctl on the node's ovs-vswitchd.
func (n *Node) AppCtl(ctx context.Context, args ...string) (string, error) {
	return n.In(ctx, append([]string{"ovs-appctl", "--timeout=30", "-t", n.vswitchd()}, args...)...)
}

// In runs a command in the node's network namespace, see Cluster.In.
func (n *Node) In(ctx context.Context, args ...string) (string, error) {
	return n.cluster.Run(ctx, control.Command{Netns: n.Name, Args: args, Env: n.environ()})
}

// Zone is the number of a port's connection tracking zone on the node, and 0 if it has none there.
func (n *Node) Zone(ctx context.Context, port ident.PortName) (zone int, err error) {
	out, err := n.VSCtl(ctx, "--if-exists", "get", "bridge", ident.IntegrationBridge, fmt.Sprintf("external_ids:%q", "ct-zone-"+string(port)))
	if err != nil || strings.TrimSpace(out) == "" {
		return 0, err
	}
	if _, err := fmt.Sscanf(strings.Trim(strings.TrimSpace(out), `"`), "%d", &zone); err != nil {
		return 0, fmt.Errorf("zone of port %s on %s is %q: %w", port, n.Name, out, err)
	}
	return zone, nil
}

// ovsDaemon is daemon for what a container of Open vSwitch or ovn-controller runs, which becomes the daemon. It is told not to complain of a busy machine, and has no preference: the machine has one processor.
func (n *Node) ovsDaemon(ctx context.Context, container, daemon string, args ...string) error {
	command := []string{
		"godwit-ovn", container, "--nice=0", "--switch-dir=" + n.dir(), "--switch-run-dir=" + n.dir(), "--switch-schema-dir=" + switchSchemas, "--run-dir=" + n.dir(), "--", "-vtimeval:off", "-vcoverage:off",
	}
	return n.cluster.daemon(ctx, n.Name, n.Name+"-"+daemon, n.environ(), append(command, args...)...)
}

// daemon starts a program that logs to logDir/name.log, and starts it again when it has ended, as a service manager or a kubelet does.
func (c *Cluster) daemon(ctx context.Context, ns, name string, env []string, args ...string) error {
	_, err := c.Start(ctx, control.Command{Netns: ns, Args: args, Env: env, Log: filepath.Join(logDir, name+".log"), Restart: true})
	return err
}

// awaitFile returns when the machine has a file: a daemon's socket.
func (c *Cluster) awaitFile(ctx context.Context, path string) error {
	return Await(ctx, "wait for "+path+" in the virtual machine", func(ctx context.Context) error {
		_, err := c.In(ctx, "", "test", "-e", path)
		return err
	})
}

package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

// Installer brings OVN and Open vSwitch to the machines of a cluster. What it returns is supervised with the machine's other services.
type Installer interface {
	// Central is what runs in the hub: NB, SB and northd, or nothing when the cluster itself runs them.
	Central(hub *Spec, run Command) []supervise.Service
	// Node is what runs on a node, at the default paths of OVS and OVN.
	Node(node *Spec, run Command) []supervise.Service
	// Replug tells OVS that another link is now called TunLink.
	Replug(ctx context.Context, node *Spec, run Command) error
}

// Command runs a program of the machine to its end, with its output in the log of that name.
type Command func(ctx context.Context, log string, argv ...string) error

var (
	_ Installer = Processes{}
	_ Installer = Pods{}
)

// Pods leaves OVN and Open vSwitch to the cluster.
type Pods struct{}

// Central is nothing.
func (Pods) Central(*Spec, Command) []supervise.Service { return nil }

// Node is nothing.
func (Pods) Node(*Spec, Command) []supervise.Service { return nil }

// Replug does to Godwit's bridge what an operator does who has changed a node's cable.
func (Pods) Replug(ctx context.Context, node *Spec, run Command) error {
	return replug(ctx, node, run, ProductBridge)
}

// Processes installs the distribution's OVN as processes of the machines.
type Processes struct {
	// Packages has the programs and schemas. The machine's PATH leads to the programs.
	Packages *packages.Root
}

// Central runs NB and SB, on TCP for the nodes and on unix sockets for everything else on this host, and northd.
func (p Processes) Central(hub *Spec, run Command) []supervise.Service {
	dir := OVNDir(hub.Dir)
	database := func(name, schema string, port int) supervise.Service {
		file := func(ext string) string { return filepath.Join(dir, name+ext) }
		return supervise.Service{
			Name: "ovsdb-" + name, Ready: unixReady(file(".sock")),
			Argv: preferred(niceness,
				"ovsdb-server", "--remote=punix:"+file(".sock"), fmt.Sprintf("--remote=ptcp:%d:%s", port, bracketed(anyAddress())),
				"--unixctl="+file(".ctl"), "-vconsole:info", "-vsyslog:off", file(".db"),
			),
			Before: func(ctx context.Context) error { return p.createDatabase(ctx, run, file(".db"), schema) },
		}
	}
	return []supervise.Service{
		database("nb", "usr/share/ovn/ovn-nb.ovsschema", NBPort),
		database("sb", "usr/share/ovn/ovn-sb.ovsschema", SBPort),
		{
			Name: "ovn-northd", Needs: []string{"ovsdb-nb", "ovsdb-sb"},
			Argv: preferred(niceness,
				"ovn-northd", "--ovnnb-db=unix:"+filepath.Join(dir, "nb.sock"), "--ovnsb-db=unix:"+filepath.Join(dir, "sb.sock"),
				"--unixctl="+filepath.Join(dir, "northd.ctl"), "-vconsole:info", "-vsyslog:off",
			),
		},
	}
}

// Where OVS and OVN keep their things on a node.
const (
	ovsRun    = "/run/openvswitch"
	ovnRun    = "/run/ovn"
	ovsSocket = ovsRun + "/db.sock"
	ovsConf   = "/etc/openvswitch/conf.db"
)

// Node runs Open vSwitch and ovn-controller, which waits for its configuration: that is Godwit's, like br-int.
func (p Processes) Node(node *Spec, run Command) []supervise.Service {
	endpoint := "unix:" + ovsSocket
	return []supervise.Service{
		{
			Name: "ovsdb-server", Ready: unixReady(ovsSocket),
			Argv:   preferred(niceness, "ovsdb-server", "--remote=punix:"+ovsSocket, "--pidfile", "-vconsole:info", "-vsyslog:off", ovsConf),
			Before: func(ctx context.Context) error { return p.prepareNode(ctx, run) },
			After:  func(ctx context.Context) error { return configureOVS(ctx, run, node) },
		},
		{
			Name: "ovs-vswitchd", Needs: []string{"ovsdb-server"}, Ready: fileReady(ovsRun + "/ovs-vswitchd.pid"),
			Argv:   vswitchd(node, endpoint),
			Before: func(context.Context) error { return removeFile(ovsRun + "/ovs-vswitchd.pid") },
		},
		{
			Name: "ovn-controller", Needs: []string{"ovs-vswitchd"},
			Argv: preferred(niceness, "ovn-controller", "--pidfile", "-vconsole:info", "-vsyslog:off", endpoint),
		},
	}
}

// What the distribution's start scripts, ovs-ctl and ovn-ctl, start their daemons with; and ovs-vswitchd where it forwards every packet itself.
const (
	niceness         = "-10"
	forwardsNiceness = "-15"
)

// preferred is the command of a daemon that competes for the processor with guests, which are emulated and take all there is. A daemon that is not preferred
// opens a moved port when it gets a processor: after 68 to 212 ms in a quarter of migrations, instead of 1 to 40 in all.
func preferred(nice string, argv ...string) []string {
	return append([]string{"nice", "--adjustment=" + nice}, argv...)
}

// vswitchd is the command of ovs-vswitchd. On two cores a quiet network of the userspace datapath showed gaps of 100 to 400 ms, and shows 10 to 27 ms when it is
// preferred to all else.
func vswitchd(node *Spec, endpoint string) []string {
	nice := niceness
	if node.Userspace {
		nice = forwardsNiceness
	}
	return preferred(nice, "ovs-vswitchd", "--pidfile", "-vconsole:info", "-vsyslog:off", endpoint)
}

// Replug takes the port of the underlay bridge out and puts it in again: the userspace datapath holds the link that it opened, not the name.
func (p Processes) Replug(ctx context.Context, node *Spec, run Command) error {
	return replug(ctx, node, run, UnderlayBridge)
}

func replug(ctx context.Context, node *Spec, run Command, bridge string) error {
	if !node.Userspace {
		return nil
	}
	return errors.Join(
		run(ctx, "ovs-vsctl", "ovs-vsctl", "--timeout=20", "--if-exists", "del-port", bridge, TunLink),
		run(ctx, "ovs-vsctl", "ovs-vsctl", "--timeout=20", "--may-exist", "add-port", bridge, TunLink),
	)
}

func (p Processes) prepareNode(ctx context.Context, run Command) error {
	for _, dir := range []string{ovsRun, ovnRun, filepath.Dir(ovsConf), "/var/log/openvswitch", "/var/log/ovn"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a directory for Open vSwitch: %w", err)
		}
	}
	return p.createDatabase(ctx, run, ovsConf, "usr/share/openvswitch/vswitch.ovsschema")
}

// configureOVS makes the row that all else hangs on and, for the userspace datapath, the bridge that holds the node's underlay link. What is there
// from before a reboot stays.
func configureOVS(ctx context.Context, run Command, node *Spec) error {
	argv := []string{"ovs-vsctl", "--no-wait", "init"}
	if node.Userspace {
		argv = append(argv, "--", "--may-exist", "add-br", UnderlayBridge, "--", "set", "bridge", UnderlayBridge, "datapath_type=netdev",
			"other-config:hwaddr="+node.TunMAC, "--", "--may-exist", "add-port", UnderlayBridge, TunLink)
	}
	return run(ctx, "ovs-vsctl", argv...)
}

// createDatabase makes an empty database unless the file exists.
func (p Processes) createDatabase(ctx context.Context, run Command, file, schema string) error {
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path, err := p.Packages.Path(schema)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make a directory for a database: %w", err)
	}
	// Under another name first: a file that was cut short when the machine died would never be completed.
	tmp := file + ".new"
	if err := removeFile(tmp); err != nil {
		return err
	}
	if err := run(ctx, "ovsdb-tool", "ovsdb-tool", "create", tmp, path); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// OVNDir is where the hub's databases and their sockets are.
func OVNDir(hubDir string) string { return filepath.Join(hubDir, "ovn") }

func bracketed(addr string) string {
	if ip := net.ParseIP(addr); ip != nil && ip.To4() == nil {
		return "[" + addr + "]"
	}
	return addr
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a file of an earlier run: %w", err)
	}
	return nil
}

// unixReady asks whether something listens on a unix socket.
func unixReady(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// fileReady asks whether a file exists.
func fileReady(path string) func(context.Context) error {
	return func(context.Context) error { _, err := os.Stat(path); return err }
}

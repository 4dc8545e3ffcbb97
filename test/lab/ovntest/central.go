// Package ovntest runs real OVN and Open vSwitch for one test, without a lab: a central (NB, SB and northd) and hosts with ovs-vswitchd and
// ovn-controller in network namespaces of their own. Everything ends with the test. It needs root, and downloads OVN where it is not installed;
// a test that cannot have it fails.
package ovntest

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// wire is the bridge in the central's namespace that connects the hosts' underlay.
const wire = "wire"

// OVNCentral is a running NB, SB and northd.
type OVNCentral struct {
	// NB and SB are the databases' endpoints, "unix:/…": reachable from every namespace.
	NB, SB string

	root *packages.Root
	ns   *netns.Namespace
	// dir is short: a unix socket's path has at most 107 bytes.
	dir string

	mu    sync.Mutex
	hosts int
}

// Central starts empty databases and northd.
func Central(t testing.TB) *OVNCentral {
	t.Helper()
	root, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	suite.Remove(t, func() { _ = os.RemoveAll(dir) })
	ns := namespace(t)
	if err := ns.Do(func() error { return addBridge(wire) }); err != nil {
		t.Fatal(err)
	}
	c := &OVNCentral{root: root, ns: ns, dir: dir, NB: "unix:" + filepath.Join(dir, "nb.sock"), SB: "unix:" + filepath.Join(dir, "sb.sock")}
	c.database(t, "nb", "usr/share/ovn/ovn-nb.ovsschema")
	c.database(t, "sb", "usr/share/ovn/ovn-sb.ovsschema", southboundListeners()...)
	cmd := root.Command(t.Context(), "ovn-northd", "--ovnnb-db="+c.NB, "--ovnsb-db="+c.SB, "--unixctl="+filepath.Join(dir, "northd.ctl"), "-vconsole:info")
	cmd.Cancel = func() error { return nil } // ended by the cleanup, in its own time
	daemon(t, ns, cmd, filepath.Join(dir, "northd.log"))
	return c
}

// database starts an ovsdb-server for dir/name.db on dir/name.sock.
func (c *OVNCentral) database(t testing.TB, name, schema string, args ...string) {
	t.Helper()
	serve(t, server{root: c.root, ns: c.ns, dir: c.dir, name: name, schema: schema, args: args})
}

// EmptyNB replaces the northbound database by an empty one, as one that is lost and made again. Its clients lose their connections.
func (c *OVNCentral) EmptyNB(t testing.TB) {
	t.Helper()
	schema, err := c.root.Path("usr/share/ovn/ovn-nb.ovsschema")
	if err != nil {
		t.Fatal(err)
	}
	ctl, file := filepath.Join(c.dir, "nb.ctl"), filepath.Join(c.dir, fmt.Sprintf("nb%d.db", c.number()))
	run(t, c.root.Command(t.Context(), "ovsdb-tool", "create", file, schema))
	run(t, c.root.Command(t.Context(), "ovs-appctl", "-t", ctl, "ovsdb-server/remove-db", "OVN_Northbound"))
	run(t, c.root.Command(t.Context(), "ovs-appctl", "-t", ctl, "ovsdb-server/add-db", file))
}

// PauseNorthd has northd write nothing.
func (c *OVNCentral) PauseNorthd(t testing.TB) {
	t.Helper()
	c.northd(t, "pause")
}

const (
	resumeTries = 5
	// resumePatience is for how long northd may take to be active again.
	resumePatience = 20 * time.Second
)

// ResumeNorthd returns when northd writes again. One of 23.03 that was told to resume was not active again, once in many runs, two minutes after it: it is told anew then.
func (c *OVNCentral) ResumeNorthd(t testing.TB) {
	t.Helper()
	for range resumeTries {
		c.northd(t, "resume")
		for end := time.Now().Add(resumePatience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if strings.Contains(c.northd(t, "status"), "active") {
				return
			}
		}
		t.Logf("northd is not active %s after it was told to resume: %s", resumePatience, c.northd(t, "status"))
		c.northd(t, "pause")
	}
	t.Fatalf("northd does not resume")
}

func (c *OVNCentral) northd(t testing.TB, command string) (said string) {
	t.Helper()
	out, err := c.root.Command(t.Context(), "ovs-appctl", "-t", filepath.Join(c.dir, "northd.ctl"), command).CombinedOutput()
	if err != nil {
		t.Fatalf("tell northd to %s: %v: %s", command, err, out)
	}
	return string(out)
}

type server struct {
	root              *packages.Root
	ns                *netns.Namespace
	dir, name, schema string
	// args are more of ovsdb-server(1).
	args []string
}

func serve(t testing.TB, s server) *os.Process {
	t.Helper()
	schema, err := s.root.Path(s.schema)
	if err != nil {
		t.Fatal(err)
	}
	file := func(ext string) string { return filepath.Join(s.dir, s.name+ext) }
	run(t, s.root.Command(t.Context(), "ovsdb-tool", "create", file(".db"), schema))
	args := append([]string{"--remote=punix:" + file(".sock"), "--unixctl=" + file(".ctl"), "-vconsole:info"}, s.args...)
	cmd := s.root.Command(t.Context(), "ovsdb-server", append(args, file(".db"))...)
	cmd.Cancel = func() error { return nil }
	p := daemon(t, s.ns, cmd, file(".log"))
	awaitSocket(t, file(".sock"), file(".log"))
	return p
}

// namespace is a network namespace, with its loopback up, for the length of the test.
func namespace(t testing.TB) *netns.Namespace {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	if err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}); err != nil {
		t.Fatalf("bring up the loopback: %v", err)
	}
	return ns
}

func addBridge(name string) error {
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &off}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	return netlink.LinkSetUp(br)
}

// Chassis registers a chassis on which nothing runs.
func (c *OVNCentral) Chassis(t testing.TB, name string) {
	t.Helper()
	run(t, c.root.Command(t.Context(), "ovn-sbctl", "--db="+c.SB, "chassis-add", name, "geneve", fmt.Sprintf("192.0.2.%d", 1+c.number())))
}

// Southbound is what ovn-sbctl(8) says to a command.
func (c *OVNCentral) Southbound(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.root.Command(t.Context(), "ovn-sbctl", append([]string{"--db=" + c.SB}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ovn-sbctl %v: %v: %s", args, err, out)
	}
	return string(out)
}

// Trace is what the logical flows do with a packet of a datapath: actions that are left of the whole way, such as output("port"). Every port counts as resident (ovn-trace(8)).
// It fails while northd has not made the datapath.
func (c *OVNCentral) Trace(t testing.TB, datapath, packet string) (string, error) {
	t.Helper()
	out, err := c.root.Command(t.Context(), "ovn-trace", "--db="+c.SB, "--minimal", datapath, packet).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("trace %s in %s: %w: %s", packet, datapath, err, out)
	}
	return string(out), nil
}

// Dump reads tables of the northbound database, past every client's copy.
func (c *OVNCentral) Dump(t testing.TB, tables ...string) map[string][]ovsdb.Row {
	t.Helper()
	var ops []map[string]any
	for _, table := range tables {
		ops = append(ops, map[string]any{"op": ovsdb.OperationSelect, "table": table, "where": []any{}})
	}
	results := c.Transact(t, ops...)
	rows := map[string][]ovsdb.Row{}
	for i, table := range tables {
		rows[table] = results[i].Rows
	}
	return rows
}

// Transact sends operations (RFC 7047, 5.2) to the northbound database, past every client.
func (c *OVNCentral) Transact(t testing.TB, ops ...map[string]any) []ovsdb.OperationResult {
	t.Helper()
	request := []any{"OVN_Northbound"}
	for _, op := range ops {
		request = append(request, op)
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.root.Command(t.Context(), "ovsdb-client", "--timeout=20", "transact", c.NB, string(text)).Output()
	if err != nil {
		t.Fatalf("northbound transaction: %v", err)
	}
	var results []ovsdb.OperationResult
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("northbound transaction: %v", err)
	}
	for _, r := range results {
		if r.Error != "" {
			t.Fatalf("northbound transaction: %s: %s", r.Error, r.Details)
		}
	}
	return results
}

func (c *OVNCentral) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts++
	return c.hosts
}

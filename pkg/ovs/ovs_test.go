package ovs

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// connect starts a host and a client of its Open vSwitch.
func connect(t *testing.T) (*Client, *ovntest.OVSHost) {
	t.Helper()
	host := ovntest.Host(t, ovntest.Central(t), "one")
	return dial(t, host), host
}

func dial(t *testing.T, host *ovntest.OVSHost) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Connect(ctx, Config{Endpoint: host.Endpoint, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var chassisOne = Chassis{Name: "one", Remote: "tcp:192.0.2.1:6642", EncapIP: "172.30.1.11", Datapath: DatapathNetdev}

func TestChassis(t *testing.T) {
	c, _ := connect(t)
	root, err := c.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	foreign := map[string]string{"somebody": "else", "ovn-cms-options": "x"}
	ops, err := c.setKeys(root, &root.ExternalIDs, foreign)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	changed, err := c.EnsureChassis(t.Context(), chassisOne)
	if err != nil || len(changed) != 8 {
		t.Errorf("first EnsureChassis changed %v (%v), want all 8 keys", changed, err)
	}
	if changed, err := c.EnsureChassis(t.Context(), chassisOne); err != nil || len(changed) != 0 {
		t.Errorf("second EnsureChassis changed %v (%v), want nothing", changed, err)
	}
	moved := chassisOne
	moved.EncapIP = "172.30.1.99"
	changed, err = c.EnsureChassis(t.Context(), moved)
	if ip, ipErr := c.EncapIP(t.Context()); errors.Join(err, ipErr) != nil || cmp.Diff([]string{"ovn-encap-ip"}, changed) != "" || ip.String() != moved.EncapIP {
		t.Errorf("EnsureChassis with another address changed %v (%v), and it is %s (%v)", changed, err, ip, ipErr)
	}
	root, err = c.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"system-id": "one", "hostname": "one", "ovn-remote": "tcp:192.0.2.1:6642", "ovn-encap-type": "geneve", "ovn-encap-ip": "172.30.1.99",
		"ovn-bridge": "br-int", "ovn-bridge-datapath-type": "netdev", "ovn-monitor-all": "true", "somebody": "else", "ovn-cms-options": "x",
	}
	if diff := cmp.Diff(want, root.ExternalIDs); diff != "" {
		t.Errorf("external_ids (-want +got):\n%s", diff)
	}
}

func TestBridge(t *testing.T) {
	c, _ := connect(t)
	if err := c.SupportsDatapath(t.Context(), "nonsense"); err == nil || !strings.Contains(err.Error(), "change --datapath") {
		t.Errorf("an unknown datapath type: %v", err)
	}
	if err := c.SupportsDatapath(t.Context(), DatapathNetdev); err != nil {
		t.Error(err)
	}
	// ovn-controller makes the bridge itself, with the default datapath type, if it is first; both ways must end the same.
	for range 2 {
		if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
			t.Fatal(err)
		}
	}
	br, err := c.integrationBridge(t.Context())
	if err != nil || br == nil {
		t.Fatalf("no bridge: %v", err)
	}
	if br.DatapathType != DatapathNetdev || br.FailMode == nil || *br.FailMode != "secure" {
		t.Errorf("bridge has datapath type %q and fail mode %v", br.DatapathType, br.FailMode)
	}
}

func TestCreateBridge(t *testing.T) {
	c, _ := connect(t)
	root, err := c.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// So that ovn-controller makes another one, and br-int is ours to make.
	ops, err := c.setKeys(root, &root.ExternalIDs, map[string]string{"ovn-bridge": "br-other"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	waitBridge(t, c, "br-other")
	br, err := c.integrationBridge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if br != nil {
		deleteBridge(t, c, br)
	}
	var made []string
	for range 2 { // the second time it is there
		if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
			t.Fatal(err)
		}
		br, err := c.integrationBridge(t.Context())
		if err != nil || br == nil {
			t.Fatalf("no bridge: %v", err)
		}
		made = append(made, br.UUID)
	}
	if made[0] != made[1] {
		t.Errorf("EnsureBridge made the bridge %v, want it once", made)
	}
}

// ovn-controller writes a connection tracking zone for every pod's port to the bridge: it must not wake the node's loop.
func TestZonesAreNoConfigChange(t *testing.T) {
	c, _ := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	ports, others := make(chan struct{}, 100), make(chan string, 100)
	c.ovsdb.Cache().AddEventHandler(&cache.EventHandlerFuncs{UpdateFunc: func(_ string, old, row model.Model) {
		was, ok := old.(*vswitchdb.Bridge)
		if !ok {
			return
		}
		switch now := row.(*vswitchdb.Bridge); {
		case !slices.Equal(was.Ports, now.Ports):
			ports <- struct{}{}
		case was.DatapathType == now.DatapathType && cmp.Equal(was.FailMode, now.FailMode): // else it is EnsureBridge's
			others <- cmp.Diff(was, now)
		}
	}})
	br, err := c.integrationBridge(t.Context())
	if err != nil || br == nil {
		t.Fatalf("no bridge: %v", err)
	}
	ops, err := c.setKeys(br, &br.ExternalIDs, map[string]string{"ct-zone-pod/ns/a/default": "7"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	if zones, err := c.Zones(t.Context()); err != nil || !maps.Equal(zones, map[string]uint16{"pod/ns/a/default": 7}) {
		t.Errorf("zones %v (%v), want that of the port", zones, err)
	}
	if err := c.EnsurePort(t.Context(), podPort("gw1", "c1")); err != nil { // what comes after it
		t.Fatal(err)
	}
	select {
	case <-ports:
	case <-time.After(time.Minute):
		t.Fatal("a port on the bridge was not told")
	}
	select {
	case diff := <-others: // the zone's event would have come before the port's
		t.Errorf("the bridge is told to have changed:\n%s", diff)
	default:
	}
}

func waitBridge(t *testing.T, c *Client, name string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var rows []vswitchdb.Bridge
		if err := c.ovsdb.WhereCache(func(b *vswitchdb.Bridge) bool { return b.Name == name }).List(t.Context(), &rows); err != nil {
			t.Fatal(err)
		}
		if len(rows) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is no bridge %s", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func deleteBridge(t *testing.T, c *Client, br *vswitchdb.Bridge) {
	t.Helper()
	root, err := c.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ops, err := c.ovsdb.Where(root).Mutate(root, mutation(&root.Bridges, ovsdb.MutateOperationDelete, []string{br.UUID}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
}

func podPort(name, container string) Port {
	return Port{
		Name: name, ID: ident.PodPort("ns", "a", ident.DefaultNetwork), UID: "uid-" + container, MAC: "0a:67:0a:f4:00:05",
		Owner: Owner{Container: container, IfName: "eth0", Netns: "/run/netns/" + container, Pod: "ns/a", Conf: "godwit"},
	}
}

func addLink(t *testing.T, host *ovntest.OVSHost, name string) {
	t.Helper()
	if err := host.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
	}); err != nil {
		t.Fatal(err)
	}
}

func TestPorts(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	first, second := podPort("gw1", "c1"), podPort("gw2", "c2")
	addLink(t, host, "gw1")
	addLink(t, host, "gw2")
	for range 2 { // the second time is no transaction
		if err := c.EnsurePort(t.Context(), first); err != nil {
			t.Fatal(err)
		}
	}
	wantPorts(t, c, first)
	// Another container of the same pod takes the OVN port over.
	if err := c.EnsurePort(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wantPorts(t, c, second)
	if _, err := c.Port(t.Context(), "gw1"); !errors.Is(err, ErrNoPort) {
		t.Errorf("the replaced port: %v, want ErrNoPort", err)
	}
	changed := second
	changed.Owner.Netns = "/run/netns/other"
	if err := c.EnsurePort(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	wantPorts(t, c, changed)
	for range 2 {
		if err := c.DeletePorts(t.Context(), "gw1", "gw2", "gw3"); err != nil {
			t.Fatal(err)
		}
	}
	wantPorts(t, c)
	noOrphans(t, c)
}

func wantPorts(t *testing.T, c *Client, want ...Port) {
	t.Helper()
	have, err := c.PodPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []Port
	for _, p := range have {
		got = append(got, p.Port)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

// noOrphans checks that what is gone is gone from all tables.
func noOrphans(t *testing.T, c *Client) {
	t.Helper()
	var ports []vswitchdb.Port
	if err := c.ovsdb.List(t.Context(), &ports); err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		if strings.HasPrefix(p.Name, "gw") {
			t.Errorf("Port row %s is left", p.Name)
		}
	}
}

func TestForeignPortIsNotTouched(t *testing.T) {
	c, _ := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	br, err := c.integrationBridge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	foreign := Port{Name: "gw1", ID: "pod/ns/a/default"}
	ops, err := c.addOps(br, foreign)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		if ops[i].Table == vswitchdb.InterfaceTable {
			ops[i].Row["external_ids"] = ovsdb.OvsMap{GoMap: map[any]any{"iface-id": "pod/ns/a/default"}}
		}
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	if err := c.EnsurePort(t.Context(), podPort("gw1", "c1")); err == nil || !strings.Contains(err.Error(), "not Godwit's") {
		t.Errorf("adding a port whose name somebody else has: %v", err)
	}
	if err := c.DeletePorts(t.Context(), "gw1"); err != nil {
		t.Error(err)
	}
	rows, err := c.interfaces(t.Context(), func(i *vswitchdb.Interface) bool { return i.Name == "gw1" })
	if err != nil || len(rows) != 1 {
		t.Errorf("somebody else's port was removed (%v)", err)
	}
}

func TestInternalPortIsUpdatedInPlace(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	p := Port{Name: "ovn0", Internal: true, ID: ident.NodePort("one"), MAC: "0a:67:64:40:00:0b", MTU: 1442}
	for _, mtu := range []int{1442, 1400} {
		p.MTU = mtu
		if err := c.EnsurePort(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		got, err := c.Port(t.Context(), "ovn0")
		if err != nil || got.Port != p {
			t.Errorf("port is %+v (%v), want %+v", got.Port, err, p)
		}
		waitLink(t, host, "ovn0", func(i *net.Interface) bool { return i.MTU == mtu && i.HardwareAddr.String() == p.MAC })
	}
	if n, err := c.PodPorts(t.Context()); err != nil || len(n) != 0 {
		t.Errorf("the node's own port is among the pods': %v (%v)", n, err)
	}
}

func waitLink(t *testing.T, host *ovntest.OVSHost, name string, ok func(*net.Interface) bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var link *net.Interface
		err := host.Do(func() (err error) { link, err = net.InterfaceByName(name); return err })
		if err == nil && ok(link) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("link %s is %+v (%v)", name, link, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWaitInstalled(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	addLink(t, host, "gw1")
	p := podPort("gw1", "c1")
	if err := c.EnsurePort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.WaitInstalled(ctx, "gw1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a port that nobody binds: %v, want DeadlineExceeded", err)
	}
	result := make(chan error, 1)
	go func() { result <- c.WaitInstalled(t.Context(), "gw1") }()
	setInstalled(t, c, "gw1")
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("WaitInstalled missed the event")
	}
	if err := c.WaitInstalled(t.Context(), "gw1"); err != nil {
		t.Errorf("wait for what is so already: %v", err)
	}
	go func() { result <- c.WaitInstalled(t.Context(), "gw2") }()
	if err := <-result; !errors.Is(err, ErrNoPort) {
		t.Errorf("wait for a port that does not exist: %v, want ErrNoPort", err)
	}
	if len(c.watch.interfaces) != 0 {
		t.Errorf("%d subscriptions are left", len(c.watch.interfaces))
	}
}

// setInstalled writes what ovn-controller writes.
func setInstalled(t *testing.T, c *Client, name string) {
	t.Helper()
	row := &vswitchdb.Interface{Name: name}
	if err := c.ovsdb.Get(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	ops, err := c.setKeys(row, &row.ExternalIDs, map[string]string{keyOVNInstalled: "true"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
}

func TestWaitInstalledReportsTheSwitchsError(t *testing.T) {
	c, _ := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	if err := c.EnsurePort(t.Context(), podPort("gw1", "c1")); err != nil { // there is no link gw1
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.WaitInstalled(ctx, "gw1"); !errors.Is(err, ErrInterface) || !strings.Contains(err.Error(), "No such device") {
		t.Errorf("wait for a port without a link: %v, want ovs-vswitchd's error", err)
	}
}

func TestConnectWaitsForTheDatabase(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Connect(ctx, Config{Endpoint: "unix:" + t.TempDir() + "/none.sock", Logger: slog.New(slog.DiscardHandler)})
	if err == nil || time.Since(start) < 200*time.Millisecond {
		t.Errorf("Connect to nothing ended after %s with %v, want it to try until its context ends", time.Since(start), err)
	}
}

func mutation(field any, op ovsdb.Mutator, value any) model.Mutation {
	return model.Mutation{Field: field, Mutator: op, Value: value}
}

// A port is found by OVN's name for it, as soon as it is there.
func TestWaitPort(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	other := podPort("gw1", "c1")
	other.ID = ident.PodPort("ns", "other", ident.DefaultNetwork)
	addLink(t, host, other.Name)
	if err := c.EnsurePort(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	want := podPort("gw2", "c2")
	if _, err := c.WaitPort(short, want.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a port that does not come: %v, want DeadlineExceeded", err)
	}
	found := make(chan PortStatus, 1)
	go func() {
		p, err := c.WaitPort(t.Context(), want.ID)
		if err != nil {
			t.Error(err)
		}
		found <- p
	}()
	addLink(t, host, want.Name)
	if err := c.EnsurePort(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if p := <-found; p.Name != want.Name {
		t.Errorf("found %+v, want %s", p, want.Name)
	}
}

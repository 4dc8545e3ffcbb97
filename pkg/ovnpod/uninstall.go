package ovnpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// uninstalled is what the probe looks for: the node is clean. It is in the container, and gone with it.
const uninstalled = "/tmp/godwit-uninstalled"

// userspaceDatapath is a link that ovs-vswitchd makes for itself on the userspace datapath.
const userspaceDatapath = "ovs-netdev"

// Directories of a node that are Godwit's alone; the certificates' are those of docs/security.md.
const (
	certificateDir = "/etc/godwit"
	stateDir       = "/var/lib/godwit"
)

// Uninstaller takes from a node what Godwit has left there. It waits until none of Godwit's processes answers any more, since they would make all of it again.
//
// Inputs: the sockets of Godwit's, OVN's and Open vSwitch's processes; the file of the local database. Outputs, all of them removed: the CNI configuration and plugin; nftables tables inet godwit and
// inet godwit-services; addresses of egress gateways; pods' veths; the kernel's datapath; files. The underlay's link gets back its addresses and routes.
type Uninstaller struct {
	Config Config
	// Root is where the node's root directory is; all other paths are the node's.
	Root string
	// PluginDir and ConfigurationDir are the runtime's, of CNI.
	PluginDir, ConfigurationDir string
	// Databases: this node's copies of OVN's databases go too.
	Databases bool
	Log       *slog.Logger
}

// Run returns nil when the node is clean.
func (u Uninstaller) Run(ctx context.Context) error {
	for told := ""; ; {
		why, err := u.inTheWay(ctx)
		if err != nil {
			return err
		}
		if why == "" {
			break
		}
		if told != why {
			told = why
			u.Log.Info("waiting", "reason", why)
		}
		if err := pause(ctx, retryInterval); err != nil {
			return fmt.Errorf("wait until Godwit's pods are gone: %w", err)
		}
	}
	for _, s := range []struct {
		what   string
		remove func(context.Context) error
	}{
		{"the CNI configuration and plugin", func(context.Context) error { return u.removePlugin() }},
		{"nftables tables", func(context.Context) error { return netdev.Host{}.RemoveTables() }},
		{"addresses of egress gateways", func(context.Context) error { return u.returnLoans() }},
		{"links of pods", func(context.Context) error { return u.removeLinks() }},
		{"Open vSwitch's links", u.removeSwitch},
		{"files", func(context.Context) error { return u.removeFiles() }},
	} {
		if err := s.remove(ctx); err != nil {
			return fmt.Errorf("remove %s: %w", s.what, err)
		}
		u.Log.Info("removed", "what", s.what)
	}
	if err := os.WriteFile(uninstalled, nil, 0o600); err != nil {
		return fmt.Errorf("tell that the node is clean: %w", err)
	}
	return nil
}

// at is a path of the node's, as this process finds it.
func (u Uninstaller) at(path string) string { return filepath.Join(u.Root, path) }

// under has the paths of a configuration below a directory.
func (c Config) under(root string) Config {
	for _, p := range []*string{&c.StateDir, &c.SwitchDir, &c.RunDir, &c.SwitchRunDir} {
		*p = filepath.Join(root, *p)
	}
	return c
}

// inTheWay says which process of Godwit's still runs on the node. Open vSwitch and OVN are Godwit's where the node has their databases in Godwit's directories.
func (u Uninstaller) inTheWay(ctx context.Context) (string, error) {
	const remedy = ": delete what installed it (kubectl delete -f yamls/, or helm uninstall)"
	dialing, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if conn, err := new(net.Dialer).DialContext(dialing, "unix", u.at(wire.DefaultSocket)); err == nil {
		_ = conn.Close()
		return "godwit-agent runs" + remedy, nil
	}
	mine, err := u.ownSwitch()
	if err != nil {
		return "", err
	}
	central, err := exists(u.at(u.Config.named(ProbeNB).File))
	if err != nil {
		return "", err
	}
	var daemons []string
	if central {
		daemons = append(daemons, ProbeNB, ProbeSB, ProbeNorthd)
	}
	if mine {
		daemons = append(daemons, ProbeController, ProbeSwitch, ProbeSwitchDB)
	}
	c := u.Config.under(u.Root)
	for _, d := range daemons {
		if c.answers(ctx, d) == nil {
			return "its " + d + " runs" + remedy, nil
		}
	}
	return "", nil
}

// ownSwitch says whether the node's Open vSwitch was a pod.
func (u Uninstaller) ownSwitch() (bool, error) { return exists(u.at(Switch{Config: u.Config}.file())) }

func (u Uninstaller) removePlugin() error {
	for _, f := range []string{filepath.Join(u.ConfigurationDir, ident.ConfigurationFile), filepath.Join(u.PluginDir, ident.PluginName)} { // no pod is to be started by half of it
		if err := os.Remove(u.at(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (u Uninstaller) returnLoans() error {
	_, err := netdev.Host{}.SyncBorrowed(nil, 0)
	return err
}

// removeLinks removes the veths of pods, those of pods that still run among them: their network has ended already.
func (u Uninstaller) removeLinks() error {
	var host netdev.Host
	links, err := host.HostSides()
	if err != nil {
		return err
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Alias, ident.PodAlias) {
			continue
		}
		if err := host.DeleteIndex(l.Index); err != nil {
			return err
		}
	}
	return nil
}

// removeSwitch removes what Open vSwitch has left in the kernel, if it was a pod, and gives the underlay's link back what the agent had moved to a bridge.
func (u Uninstaller) removeSwitch(ctx context.Context) error {
	mine, err := u.ownSwitch()
	if err != nil {
		return err
	}
	if !mine {
		there, err := exists(u.at(Switch{Config: u.Config}.socket()))
		if there {
			u.Log.Info("Open vSwitch of this node is not Godwit's, and keeps its bridges: ovs-vsctl --if-exists del-br " + ident.IntegrationBridge)
		}
		return err
	}
	var host netdev.Host
	if err := host.RemoveDatapath(); err != nil {
		return err
	}
	taken, err := u.underlays(ctx)
	if err != nil {
		return err
	}
	links := []string{ident.IntegrationBridge, ident.GatewayInterface, userspaceDatapath}
	for _, t := range taken {
		links = append(links, t.Bridge)
	}
	for _, l := range links { // those of the userspace datapath outlive ovs-vswitchd, with their addresses and routes
		if err := host.DeleteLink(l); err != nil {
			return err
		}
	}
	for _, t := range taken {
		if err := host.GiveBack(t.Link, netdev.Holdings{Addresses: t.Addresses, Routes: t.Routes}); err != nil {
			return err
		}
		u.Log.Info("the link has its addresses again", "link", t.Link, "addresses", t.Addresses, "routes", t.Routes)
	}
	return nil
}

// underlays reads from the local database's file which links the agent has put into bridges.
func (u Uninstaller) underlays(ctx context.Context) ([]ovs.Underlay, error) {
	const query = `["Open_vSwitch",{"op":"select","table":"Interface","where":[],"columns":["name","external_ids"]}]`
	text, err := databaseTool(ctx, "query", u.at(Switch{Config: u.Config}.file()), query)
	if err != nil {
		return nil, err
	}
	return parseUnderlays(text)
}

// parseUnderlays reads ovsdb-tool's answer to a query of names and external_ids of Interfaces.
func parseUnderlays(text string) (out []ovs.Underlay, err error) {
	var results []struct {
		Rows []struct {
			Name string            `json:"name"`
			IDs  []json.RawMessage `json:"external_ids"`
		} `json:"rows"`
	}
	if err := json.Unmarshal([]byte(text), &results); err != nil || len(results) != 1 {
		return nil, fmt.Errorf("read the local database: want the rows of table Interface, have %q: %w", text, err)
	}
	for _, row := range results[0].Rows {
		u, found, err := ovs.ParseUnderlay(row.Name, mapColumn(row.IDs))
		if err != nil {
			return nil, err
		}
		if found {
			out = append(out, u)
		}
	}
	return out, nil
}

// removeFiles removes what is Godwit's alone, the sockets of daemons that were pods among it. The local database is the last: it says that they were.
func (u Uninstaller) removeFiles() error {
	mine, err := u.ownSwitch()
	if err != nil {
		return err
	}
	paths := []string{filepath.Dir(wire.DefaultSocket), certificateDir}
	if mine {
		paths = append(paths, u.Config.RunDir, u.Config.SwitchRunDir)
	}
	if u.Databases {
		paths = append(paths, u.Config.StateDir)
	}
	for _, p := range append(paths, u.Config.SwitchDir) {
		if err := os.RemoveAll(u.at(p)); err != nil && !errors.Is(err, unix.EBUSY) { // a directory that is a disk of its own stays, without its files
			return fmt.Errorf("remove a directory of Godwit's: %w", err)
		}
	}
	left := os.Remove(u.at(stateDir))
	switch {
	case errors.Is(left, unix.ENOTEMPTY):
		u.Log.Info("copies of OVN's databases are kept: --databases removes them", "directory", u.Config.StateDir)
	case left != nil && !errors.Is(left, fs.ErrNotExist) && !errors.Is(left, unix.EBUSY):
		return fmt.Errorf("remove a directory of Godwit's: %w", left)
	}
	return nil
}

// clean returns nil when Run has ended well in this container.
func clean() error {
	done, err := exists(uninstalled)
	if err == nil && !done {
		err = errors.New("the node is not clean yet: the container's log says what it waits for")
	}
	return err
}

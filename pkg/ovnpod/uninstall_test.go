package ovnpod

import (
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// nodeWith makes a node's root directory with files in it.
func nodeWith(t *testing.T, files ...string) string {
	t.Helper()
	root, err := os.MkdirTemp("", "gwu") // short, for unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func filesOf(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func uninstaller(root string) Uninstaller {
	return Uninstaller{Config: Defaults(), Root: root, PluginDir: "/opt/cni/bin", ConfigurationDir: "/etc/cni/net.d", Log: slog.New(slog.DiscardHandler)}
}

// What is Godwit's goes, what is others' stays, and OVN's databases go when they are told to.
func TestUninstallFiles(t *testing.T) {
	others := []string{"/etc/cni/net.d/10-other.conflist", "/opt/cni/bin/portmap"}
	shared := []string{
		"/etc/cni/net.d/05-godwit.conflist", "/opt/cni/bin/godwit", "/etc/godwit/tls/tls.key", "/run/godwit/cni.sock", "/run/openvswitch/db.sock", "/run/ovn/ovn-controller.1.ctl",
	}
	database, local := "/var/lib/godwit/ovn/nb.db", "/var/lib/godwit/ovs/conf.db"
	for name, tc := range map[string]struct {
		files     []string
		databases bool
		left      []string
	}{
		"a node":                       {append(shared, local), false, nil},
		"with a copy of the databases": {append(shared, local, database), false, []string{database}},
		"and that goes too":            {append(shared, local, database), true, nil},
		"somebody else's Open vSwitch": {shared, false, []string{"/run/openvswitch/db.sock", "/run/ovn/ovn-controller.1.ctl"}},
		"nothing":                      {nil, false, nil},
	} {
		u := uninstaller(nodeWith(t, append(tc.files, others...)...))
		u.Databases = tc.databases
		for range 2 {
			if err := u.removePlugin(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := u.removeFiles(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if name == "somebody else's Open vSwitch" {
				break
			}
		}
		if d := cmp.Diff(append(tc.left, others...), filesOf(t, u.Root), cmpopts.SortSlices(strings.Compare)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Nothing is removed as long as somebody would make it again.
func TestUninstallWaits(t *testing.T) {
	u := uninstaller(nodeWith(t, "/run/godwit/other"))
	if why, err := u.inTheWay(t.Context()); err != nil || why != "" {
		t.Errorf("on an empty node %q is in the way (%v)", why, err)
	}
	l, err := net.Listen("unix", filepath.Join(u.Root, "run/godwit/cni.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if why, err := u.inTheWay(t.Context()); err != nil || !strings.Contains(why, "godwit-agent runs: delete") {
		t.Errorf("beside an agent %q is in the way (%v)", why, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if why, err := u.inTheWay(t.Context()); err != nil || why != "" {
		t.Errorf("after the agent %q is in the way (%v)", why, err)
	}
}

func TestParseUnderlays(t *testing.T) {
	const rows = `[{"rows":[{"external_ids":["map",[]],"name":"br-int"},{"external_ids":["map",[["godwit.dev/addresses","198.51.100.1/24 fd00:1::1/64"],` +
		`["godwit.dev/routes","203.0.113.0/24>198.51.100.254"],["godwit.dev/metric-routes","0.0.0.0/0>198.51.100.1>101"],["godwit.dev/underlay","eth1"]]],"name":"br-underlay"}]}]`
	got, err := parseUnderlays(rows)
	want := []ovs.Underlay{{
		Bridge: "br-underlay", Link: "eth1", Routes: []string{"203.0.113.0/24>198.51.100.254", "0.0.0.0/0>198.51.100.1>101"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("fd00:1::1/64")},
	}}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"", "[]", strings.Replace(rows, "198.51.100.1/24", "here", 1)} {
		if got, err := parseUnderlays(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

package ovs

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// TestTrackLoosely tells a real ovs-vswitchd, beside the socket of one that is dead.
func TestTrackLoosely(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	if got := host.Control(t, "dpctl/ct-get-tcp-seq-chk"); !strings.Contains(got, "enabled") {
		t.Fatalf("at first: %s", got)
	}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(host.RunDir, "ovs-vswitchd.1.ctl"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.TrackLoosely(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := host.Control(t, "dpctl/ct-get-tcp-seq-chk"); !strings.Contains(got, "disabled") {
			t.Errorf("afterwards: %s", got)
		}
	}
}

// TestTrackLooselySaysWhatIsMissing: without ovs-vswitchd, which directory was looked into; with one that does not answer, which socket.
func TestTrackLooselySaysWhatIsMissing(t *testing.T) {
	dir, err := os.MkdirTemp("", "gwctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &Client{endpoint: "unix:" + filepath.Join(dir, "db.sock")}
	if err := c.TrackLoosely(t.Context()); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("without a control socket: %v", err)
	}
	socket := filepath.Join(dir, "ovs-vswitchd.7.ctl")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.TrackLoosely(t.Context()); err == nil || !strings.Contains(err.Error(), socket) {
		t.Errorf("with a control socket that nobody serves: %v", err)
	}
	if err := (&Client{endpoint: "tcp:192.0.2.1:6640"}).TrackLoosely(t.Context()); err == nil {
		t.Error("a database that is elsewhere")
	}
}

// TestAvoidZeroSNAT: the capability goes where the daemon dies of it, and the others stay.
func TestAvoidZeroSNAT(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	avoided := false
	for deadline := time.Now().Add(time.Minute); !avoided; time.Sleep(20 * time.Millisecond) { // ovn-controller makes the row, ovs-vswitchd fills it
		var err error
		if avoided, err = c.AvoidZeroSNAT(t.Context()); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s was not made to do without; it says that it is %q", capabilityZeroSNAT, host.Control(t, "version"))
		}
	}
	root, err := c.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	row := &vswitchdb.Datapath{UUID: root.Datapaths[DatapathNetdev]}
	if err := c.ovsdb.Get(t.Context(), row); err != nil || row.Capabilities[capabilityZeroSNAT] != "false" || row.Capabilities["ct_state_nat"] != "true" {
		t.Errorf("capabilities %v (%v), want the others as they were", row.Capabilities, err)
	}
	if again, err := c.AvoidZeroSNAT(t.Context()); again || err != nil {
		t.Errorf("the second time: %v, %v", again, err)
	}
}

func TestDiesOfZeroSNAT(t *testing.T) {
	for version, want := range map[string]bool{
		"2.16.4": true, "2.17.7": true, "2.17.8": false, "3.0.4": true, "3.0.5": false, "3.1.0": true, "3.1.3": false, "3.2.2": true, "3.2.3": false, "3.3.0": false, "3.10.0": false, "4.0.0": false,
	} {
		if got := diesOfZeroSNAT("ovs-vswitchd (Open vSwitch) " + version + "\n"); got != want {
			t.Errorf("%s: %v, want %v", version, got, want)
		}
	}
	if !diesOfZeroSNAT("what is this?") {
		t.Error("a version that cannot be read is taken for a good one")
	}
}

package ovs

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

package vm

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/kernel/control"
)

// TestBoot boots a machine whose kernel has the modules that the tests are about, and ends it.
func TestBoot(t *testing.T) {
	m, err := Boot(t.Context(), Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), MemoryMiB: 1024})
	if err != nil {
		t.Fatal(err)
	}
	pid, dir := m.qemu.cmd.Process.Pid, m.dir
	out, err := m.Run(t.Context(), control.Command{Args: []string{"ls", "/sys/module"}})
	if err != nil {
		t.Error(err)
	}
	loaded := strings.Fields(out)
	for _, name := range []string{"openvswitch", "geneve", "nf_conntrack", "nf_conntrack_netlink", "sctp", "veth", "bridge", "nf_tables", "nft_masq"} {
		if !slices.Contains(loaded, name) {
			t.Errorf("the kernel does not have %s, but %v", name, loaded)
		}
	}
	if said := m.Console(100); strings.Contains(said, "does not load") {
		t.Errorf("modules failed:\n%s", said)
	}
	for _, p := range programs {
		if _, err := m.Run(t.Context(), control.Command{Args: []string{"which", p}}); err != nil {
			t.Errorf("the machine lacks %s: %v", p, err)
		}
	}
	for _, args := range [][]string{{"ovs-vswitchd", "--version"}, {"ovn-controller", "--version"}, {"conntrack", "--version"}, {"nft", "list", "ruleset"}, {"ip", "netns", "add", "x"}} {
		if _, err := m.Run(t.Context(), control.Command{Args: args}); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.Dial(t.Context(), "tcp", "192.0.2.1:80"); err == nil {
		t.Error("the machine's network reaches the world")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(pid, 0); err == nil {
		t.Errorf("QEMU, process %d, has survived", pid)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory %s has survived: %v", dir, err)
	}
}

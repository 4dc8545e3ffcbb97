package packages

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackagesRun proves that the unpacked programs find their libraries, which is all that can be wrong with them.
func TestPackagesRun(t *testing.T) {
	root, err := Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		program, flag, want string
	}{
		{"ovsdb-server", "--version", "ovsdb-server (Open vSwitch)"},
		{"ovs-vswitchd", "--version", "ovs-vswitchd (Open vSwitch)"},
		{"ovn-northd", "--version", "ovn-northd"},
		{"ovn-controller", "--version", "ovn-controller"},
		{"containerd", "--version", "containerd"},
		{"runc", "--version", "runc version"},
		{"nft", "--version", "nftables v"},
		{"iptables", "--version", "nf_tables"},
		{"iperf3", "--version", "iperf 3"},
		{"busybox", "--help", "BusyBox v"},
		{"conntrack", "--version", "conntrack v"},
		{"ethtool", "--version", "ethtool version"},
		{"tcpdump", "--version", "tcpdump version"},
	} {
		t.Run(tt.program, func(t *testing.T) {
			out, err := root.Command(t.Context(), tt.program, tt.flag).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %s: %v: %s", tt.program, tt.flag, err, out)
			}
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("%s %s printed %q, want %q in it", tt.program, tt.flag, out, tt.want)
			}
		})
	}
	if err := root.Command(t.Context(), "no-such-program").Run(); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("running an absent program: %v, want an error that names it", err)
	}
}

// TestVM proves that the emulator finds its libraries and that the kernel comes with its modules.
func TestVM(t *testing.T) {
	root, err := EnsureVM(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := root.Command(t.Context(), "qemu-system-x86_64", "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "QEMU emulator version") {
		t.Errorf("qemu-system-x86_64 --version: %v: %s", err, out)
	}
	kernel, err := root.Kernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{kernel.Image, filepath.Join(kernel.Modules, "kernel/drivers/net")} {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

// TestLibvirt proves that libvirt and its client find their libraries.
func TestLibvirt(t *testing.T) {
	root, err := EnsureLibvirt(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"libvirtd", "virsh"} {
		if out, err := root.Command(t.Context(), program, "--version").CombinedOutput(); err != nil {
			t.Errorf("%s --version: %v: %s", program, err, out)
		}
	}
}

func TestMergeUsr(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"bin/busybox", "sbin/ethtool", "lib/systemd/system/x.service", "usr/bin/ctr"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := mergeUsr(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"usr/bin/busybox", "usr/bin/ctr", "usr/sbin/ethtool", "usr/lib/systemd/system/x.service"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("the tree's top holds %v, want usr alone", left)
	}
}

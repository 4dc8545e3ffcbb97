package initramfs

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

// TestBuild has busybox's cpio read the archive, and checks that each module comes after those that it needs.
func TestBuild(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	base, err := packages.Ensure(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	root, err := packages.EnsureVM(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := root.Kernel()
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := base.Program("busybox")
	if err != nil {
		t.Fatal(err)
	}
	extra := filepath.Join(t.TempDir(), "extra")
	if err := os.WriteFile(extra, []byte("xyz"), 0o755); err != nil {
		t.Fatal(err)
	}
	parts := Parts{Kernel: kernel, Busybox: busybox, Applets: []string{"busybox", "sh"}, Programs: []string{extra}}
	disk, err := Build(parts)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(parts)
	if err != nil || !bytes.Equal(disk, again) {
		t.Errorf("the same input gave another archive (%v)", err)
	}
	dir := t.TempDir()
	unpack := exec.Command(busybox, "cpio", "-idm")
	unpack.Dir, unpack.Stdin = dir, bytes.NewReader(disk)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	for name, want := range map[string]string{"init": string(initScript), "bin/lease": string(leaseScript), "bin/extra": "xyz"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v: want %q", name, got, err, want)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin/sh")); err != nil || to != "busybox" {
		t.Errorf("bin/sh leads to %q, %v: want busybox", to, err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "lib/modules/order"))
	if err != nil {
		t.Fatal(err)
	}
	order := strings.Fields(string(list))
	for i, file := range order {
		content, err := os.ReadFile(filepath.Join(dir, "lib/modules", file))
		if err != nil {
			t.Fatal(err)
		}
		needs, err := dependencies(content)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, n := range needs {
			if at := slices.Index(order, n+".ko"); at < 0 || at > i {
				t.Errorf("%s needs %s, which is not loaded before it: %v", file, n, order)
			}
		}
	}
}

// TestScripts has the guest's own shell read them.
func TestScripts(t *testing.T) {
	base, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"init.sh", "lease.sh"} {
		if out, err := base.Command(t.Context(), "busybox", "sh", "-n", s).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", s, err, out)
		}
	}
}

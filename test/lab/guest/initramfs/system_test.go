package initramfs

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// TestSystem has busybox's cpio read the archive of a system.
func TestSystem(t *testing.T) {
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
	var disk bytes.Buffer
	system := System{Kernel: kernel, Modules: []string{"no_such_module", "geneve"}, Files: []image.File{
		{Path: "/init", Content: []byte("odd")}, {Path: "/a/b/file", From: busybox}, {Path: "/a/b/link", Link: "file"}, {Path: "/init", Content: []byte("not this")},
		{Path: "/a/secret", Content: []byte("x"), Mode: 0o600}, {Path: "/empty", Dir: true},
	}}
	if err := system.Write(&disk); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack := exec.CommandContext(t.Context(), busybox, "cpio", "-idm")
	unpack.Dir, unpack.Stdin = dir, &disk
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	want, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"init": "odd", "a/b/file": string(want), "a/b/link": string(want), "a/secret": "x"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s has %d bytes, %v: want the %d that were given", name, len(got), err, len(want))
		}
	}
	for name, want := range map[string]os.FileMode{"init": 0o755, "a/secret": 0o600, "empty": os.ModeDir | 0o755, "a/b/link": os.ModeSymlink | 0o777} {
		if fi, err := os.Lstat(filepath.Join(dir, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %s", name, fi, err, want)
		}
	}
	order, err := os.ReadFile(filepath.Join(dir, "lib/modules/order"))
	if err != nil || !strings.HasSuffix(string(order), "geneve.ko\n") || strings.Contains(string(order), "no_such") {
		t.Errorf("modules are %q, %v: want geneve after what it needs, and nothing that does not exist", order, err)
	}
}

package image

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// TestProduct: each of Godwit's images has what its lists say, its programs run from it alone, and its Dockerfile goes by the same lists. It needs root.
func TestProduct(t *testing.T) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"godwit", "ovn"} {
		img, err := Product(top, name, pkgs, "/nowhere")
		if err != nil {
			t.Fatal(err)
		}
		dockerfile, err := os.ReadFile(filepath.Join(top, "dist/images", name, "Dockerfile"))
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range []string{Programs, Files, Commands} {
			if !strings.Contains(string(dockerfile), "dist/images/"+name+"/"+list) {
				t.Errorf("the Dockerfile of %s does not go by its list %q", name, list)
			}
		}
		commands, err := List(top, name, Commands)
		if err != nil || len(commands) == 0 {
			t.Fatalf("commands of image %s: %v, %v", name, commands, err)
		}
		for _, c := range commands {
			if _, err := os.Stat(filepath.Join(top, "cmd", c, "main.go")); err != nil {
				t.Errorf("image %s has a command that there is not: %v", name, err)
			}
		}
		root := t.TempDir()
		unpack(t, img, root)
		programs, err := List(top, name, Programs)
		if err != nil || len(programs) == 0 {
			t.Fatalf("programs of image %s: %v, %v", name, programs, err)
		}
		everythingIsListed(t, img, pkgs)
		for _, p := range programs {
			cmd := exec.CommandContext(t.Context(), "/usr/bin/"+p, "--version")
			cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
			if out, err := cmd.CombinedOutput(); err != nil || len(out) == 0 {
				t.Errorf("%s in image %s printed %q (%v)", p, name, out, err)
			}
		}
	}
}

// unpack lays out what of an image is not our own.
func unpack(t *testing.T, img Image, root string) {
	t.Helper()
	for _, f := range img.Files {
		to := filepath.Join(root, f.Path)
		if f.From == "" || strings.HasPrefix(f.From, "/nowhere") {
			continue
		}
		b, err := os.ReadFile(f.From)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
}

// everythingIsListed: the SBOM has a package for each file that is not our own, by the package's own word.
func everythingIsListed(t *testing.T, img Image, pkgs *packages.Root) {
	t.Helper()
	img.Files = slices.DeleteFunc(slices.Clone(img.Files), func(f File) bool { return strings.HasPrefix(f.From, "/nowhere") })
	text, err := img.SBOM(t.Context(), pkgs, "sha256:0")
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for _, f := range img.Files {
		if f.From == "" {
			continue
		}
		owner, err := pkgs.Owner(t.Context(), f.From)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(doc.Packages, func(p spdxPackage) bool { return p.Name == owner.Name && p.Version == owner.Version && p.Version != "" }) {
			t.Errorf("%s of package %s %s is not listed", f.Path, owner.Name, owner.Version)
		}
	}
}

package krew

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/test/lab/source"
)

var (
	version = flag.String("release", "", "make the archives and the manifest of this release")
	out     = flag.String("o", "", "directory that they are written to")
)

// manifest is what krew reads of one.
type manifest struct {
	APIVersion, Kind string
	Metadata         struct{ Name string }
	Spec             struct {
		Version, Homepage, ShortDescription, Description, Caveats string
		Platforms                                                 []struct {
			URI, SHA256, Bin string
			Selector         struct{ MatchLabels map[string]string }
		}
	}
}

// Every archive that the manifest names is there under its sum, and has the file that it says.
func TestManifest(t *testing.T) {
	archives := map[Platform][]byte{}
	for _, p := range Platforms() {
		a, err := Pack(p, []byte("program of "+p.OS+"/"+p.Arch), []byte("licence"))
		if err != nil {
			t.Fatal(err)
		}
		archives[p] = a
	}
	text, err := Manifest("v1.2.3", archives)
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := yaml.UnmarshalStrict(text, &m); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if m.APIVersion != "krew.googlecontainertools.github.com/v1alpha2" || m.Kind != "Plugin" || m.Metadata.Name != "ovn" || m.Spec.Version != "v1.2.3" || m.Spec.ShortDescription == "" || len(m.Spec.Platforms) != len(Platforms()) {
		t.Errorf("manifest:\n%s", text)
	}
	for _, got := range m.Spec.Platforms {
		p := Platform{got.Selector.MatchLabels["os"], got.Selector.MatchLabels["arch"]}
		sum := sha256.Sum256(archives[p])
		if got.SHA256 != hex.EncodeToString(sum[:]) || path.Base(got.URI) != p.Archive("v1.2.3") {
			t.Errorf("%v: %s with sum %s", p, got.URI, got.SHA256)
		}
		want := map[string]string{got.Bin: "program of " + p.OS + "/" + p.Arch, "LICENSE": "licence"}
		if diff := cmp.Diff(want, unpack(t, archives[p])); diff != "" {
			t.Errorf("archive of %v (-want +got):\n%s", p, diff)
		}
	}
	delete(archives, Platforms()[0])
	if _, err := Manifest("v1.2.3", archives); err == nil || !strings.Contains(err.Error(), "no archive for linux/amd64") {
		t.Errorf("an archive is missing: %v", err)
	}
	for _, bad := range []string{"", "1.2.3", "v1.2", "v1.2.3.4", "v01.2.3", "b79c43b-dirty"} {
		if _, err := Manifest(bad, archives); err == nil || !strings.Contains(err.Error(), "as v1.2.3") {
			t.Errorf("version %q: %v", bad, err)
		}
	}
}

func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "LICENSE" && h.Mode != 0o755 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		files[h.Name] = string(text)
	}
}

// TestRelease is `make krew`: with -release it builds the plugin for every platform. Without, it checks that it could: that nothing in it is of one system alone.
func TestRelease(t *testing.T) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	license, err := os.ReadFile(filepath.Join(top, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	if *version == "" {
		for _, p := range Platforms() {
			goCommand(t, top, p, "list", "-deps", "./cmd/kubectl-ovn")
		}
		return
	}
	archives := map[Platform][]byte{}
	for _, p := range Platforms() {
		file := filepath.Join(t.TempDir(), p.Binary())
		goCommand(t, top, p, "build", "-trimpath", "-ldflags", "-s -w -X main.version="+*version, "-o", file, "./cmd/kubectl-ovn")
		binary, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if archives[p], err = Pack(p, binary, license); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(*out, p.Archive(*version)), archives[p])
	}
	text, err := Manifest(*version, archives)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(*out, "ovn.yaml"), text)
}

func goCommand(t *testing.T, top string, p Platform, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = top, append(os.Environ(), "GOOS="+p.OS, "GOARCH="+p.Arch, "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v for %s/%s: %v\n%.2000s", args, p.OS, p.Arch, err, said)
	}
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", file, len(data))
}

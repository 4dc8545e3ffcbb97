package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

func TestSameInputSameBytes(t *testing.T) {
	img := Image{
		Ref: "example/x:1", Entrypoint: []string{"/bin/x"}, Env: []string{"PATH=/bin"},
		Files: []File{{Path: "/bin/y", Link: "x"}, {Path: "/bin/x", Content: []byte("text")}, {Path: "/tmp", Dir: true, Mode: 0o1777}},
	}
	var archives [2][]byte
	var digests [2]string
	for i := range archives {
		file := filepath.Join(t.TempDir(), "x.tar")
		digest, err := img.Write(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives[i], digests[i] = b, digest
		// Another order and another age of what goes in.
		img.Files[0], img.Files[1] = img.Files[1], img.Files[0]
	}
	if !bytes.Equal(archives[0], archives[1]) || digests[0] != digests[1] {
		t.Errorf("two archives of one image differ: %s and %s", digests[0], digests[1])
	}
	members := untar(t, bytes.NewReader(archives[0]))
	var m []manifest
	if err := json.Unmarshal(members["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	want := []manifest{{Config: digests[0][len("sha256:"):] + ".json", RepoTags: []string{"example/x:1"}, Layers: []string{"layer.tar"}}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	layer := untar(t, bytes.NewReader(members["layer.tar"]))
	if diff := cmp.Diff(map[string][]byte{"bin/": {}, "bin/x": []byte("text"), "bin/y": {}, "tmp/": {}}, layer); diff != "" {
		t.Error(diff)
	}
}

func TestEnsureWritesWhatHasChanged(t *testing.T) {
	dir := t.TempDir()
	input, archive := filepath.Join(dir, "in"), filepath.Join(dir, "x.tar")
	img := Image{Ref: "example/x:1", Files: []File{{Path: "/in", From: input}}}
	written := func(content string) (digest string, changed bool) {
		t.Helper()
		before, _ := os.ReadFile(archive)
		if content != "" {
			if err := os.WriteFile(input, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(archive, append(before, "mark"...), 0o644); err != nil { // survives if the archive is left alone
			t.Fatal(err)
		}
		digest, err := img.Ensure(archive)
		if err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		return digest, !bytes.HasSuffix(after, []byte("mark"))
	}
	first, _ := written("one")
	if again, changed := written(""); changed || again != first {
		t.Errorf("an archive of unchanged files was written again, or its digest is %s instead of %s", again, first)
	}
	if second, changed := written("three"); !changed || second == first {
		t.Errorf("an archive of a changed file was left alone, with digest %s", second)
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	members := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		if members[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProgramRunsFromItsFiles runs nft in a root directory that holds nothing but the files of Program. It needs root.
func TestProgramRunsFromItsFiles(t *testing.T) {
	pkgs, err := packages.Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	nft, err := pkgs.Program("nft")
	if err != nil {
		t.Fatal(err)
	}
	files, err := Program("/usr/bin/nft", nft, pkgs.Libraries())
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, f := range files {
		b, err := os.ReadFile(f.From)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(root, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/nft", "--version")
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.HasPrefix(out, []byte("nftables v")) {
		t.Errorf("nft in its own root printed %q (%v)", out, err)
	}
}

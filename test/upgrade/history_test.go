package upgrade

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/source"
)

const (
	olderImage = "docker.io/godwitcni/godwit:older"
	// kept is where sources and programs of revisions are, below the checkout.
	kept = "out/upgrade"
)

// version is one of the two, which the test's lines call by its name.
type version struct {
	lab.Release
	name string
}

// versions are the one that the test was asked for, whose programs go into the directory that is returned, and the checkout's.
func versions(t *testing.T) (older, newer version, programs string) {
	t.Helper()
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if *from == "" {
		t.Fatal("there is no older version to begin with: want -args -from=REVISION, which make test-upgrade gives")
	}
	revision := git(t, top, "rev-parse", "--verify", *from+"^{commit}")
	dir := filepath.Join(top, kept, revision)
	sources := filepath.Join(dir, "source")
	if _, err := os.Stat(sources); errors.Is(err, fs.ErrNotExist) {
		unpack(t, top, revision, sources)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Logf("the older version is %s", git(t, top, "log", "-1", "--format=%h, %s", revision))
	older = version{lab.Release{Source: sources, Image: olderImage}, "older"}
	newer = version{lab.Release{Source: top, Image: lab.GodwitImage}, "newer"}
	return older, newer, filepath.Join(dir, "programs")
}

// unpack writes a revision's files to a directory, whole or not at all.
func unpack(t *testing.T, top, revision, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "source.tar")
	git(t, top, "archive", "--format=tar", "--output="+archive, revision)
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", tmp, "-xf", archive).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", revision, err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		t.Fatal(err)
	}
}

// git asks about the checkout, which may be another user's.
func git(t *testing.T, top string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*", "-C", top}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v: %s\nThe older version is built from the repository's history: want a clone that has it (git fetch --unshallow), or another revision, make test-upgrade FROM=REVISION",
			strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newLab is a lab of the test's own, without Godwit, whose nodes have the images of both versions. What is in its directory is removed in the end.
func newLab(t *testing.T, older version, programs string) *lab.Lab {
	t.Helper()
	fixture.Dir(t, "upgrade", patience)
	l, err := lab.Up(t.Context(), lab.Config{Name: "upgrade", OVN: lab.OVNProcesses, Empty: true, Keep: true, Log: fixture.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AddRelease(t.Context(), older.Release, programs); err != nil {
		t.Fatal(err)
	}
	return l
}

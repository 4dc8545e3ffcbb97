package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountinfo(t *testing.T) {
	in := `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 /user.slice /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:29 / /elsewhere/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
`
	want := []hierarchy{
		{controllers: "cpu,cpuacct", mount: "/sys/fs/cgroup/cpu,cpuacct", root: "/"},
		{controllers: "name=systemd", mount: "/sys/fs/cgroup/systemd", root: "/user.slice"},
	}
	if diff := cmp.Diff(want, parseMountinfo(in), cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Error(diff)
	}
}

// TestGroupTakesProcessesAndGoes uses the machine's real control groups.
func TestGroupTakesProcessesAndGoes(t *testing.T) {
	dirs, err := Plan("godwit-lab-test", "machine")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := Make(dirs); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Remove(ctx, dirs); err != nil {
			t.Error(err)
		}
		for _, d := range dirs {
			if _, err := os.Stat(filepath.Dir(d)); err == nil {
				t.Errorf("%s is left", filepath.Dir(d))
			}
		}
	}()
	// The shell's children inherit its groups, also one below.
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `for d; do echo $$ > $d/cgroup.procs; mkdir -p $d/below; done; exec sleep 60`, "sh"}, dirs...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		for !slices.Contains(Processes(d), cmd.Process.Pid) {
			if ctx.Err() != nil {
				t.Fatalf("process %d is not in %s", cmd.Process.Pid, d)
			}
			time.Sleep(time.Millisecond)
		}
	}
	// Not waited for before Remove: it must bear with processes that are ending.
	if err := Kill(dirs); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
}

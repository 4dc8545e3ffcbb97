package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/source"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// testTimeout bounds each test's work on labs; a lab takes seconds.
const testTimeout = 15 * time.Minute

// program is a godwit-lab program for all tests.
var program = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	dir, release, err := source.Programs(ctx, slog.New(slog.DiscardHandler), "./cmd/godwit-lab")
	if err != nil {
		return "", err
	}
	release()
	return filepath.Join(dir, programFile), nil
})

// config is that of a lab of the test's own, without Godwit.
func config(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwl") // short, for unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(dirVariable, dir)
	p, err := program()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Name: "test", Nodes: 2, CNI: CNINone, Program: p, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	suite.Remove(t, func() {
		// t.Context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if l, err := Open(filepath.Join(dir, c.Name)); err == nil {
			if err := l.Down(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

func up(t *testing.T, c Config) *Lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	l, err := Up(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// traces are what a lab has on the machine. Others may have labs too, so it is not enough to count.
type traces struct {
	namespaces map[string]bool
	links      []string
	cgroup     string
	dir        string
}

// look notes what a running lab consists of.
func look(t *testing.T, l *Lab) traces {
	t.Helper()
	tr := traces{namespaces: map[string]bool{}, cgroup: l.cgroupName(), dir: l.Dir(), links: links(t)}
	own := namespacesOf(os.Getpid())
	for _, pid := range processes(t) {
		if !inCgroup(pid, tr.cgroup) {
			continue
		}
		for path, ns := range namespacesOf(pid) {
			if slices.Contains(slices.Collect(maps.Values(own)), ns) || tr.namespaces[ns] {
				continue
			}
			// Held open, or its number soon means another one.
			f, err := os.Open(path)
			if err != nil {
				continue // a short-lived process
			}
			t.Cleanup(func() { _ = f.Close() })
			tr.namespaces[ns] = true
		}
	}
	if len(tr.namespaces) < 4*6 {
		t.Fatalf("the lab has %d namespaces, want six for each of its four machines at least", len(tr.namespaces))
	}
	return tr
}

// mustBeGone fails the test for everything that is left.
func (tr traces) mustBeGone(t *testing.T) {
	t.Helper()
	for _, pid := range processes(t) {
		if inCgroup(pid, tr.cgroup) {
			t.Errorf("process %d of the lab is left", pid)
		}
		for _, ns := range namespacesOf(pid) {
			if tr.namespaces[ns] {
				t.Errorf("process %d is in the lab's namespace %s", pid, ns)
			}
		}
		if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)); err == nil && strings.Contains(string(mounts), tr.dir+"/") {
			t.Errorf("process %d has mounts of the lab", pid)
		}
	}
	if now := links(t); !slices.Equal(now, tr.links) {
		t.Errorf("links of this machine are %v, were %v", now, tr.links)
	}
	found, err := exec.Command("find", "/sys/fs/cgroup", "-type", "d", "-name", tr.cgroup).Output()
	if err != nil || len(found) > 0 {
		t.Errorf("control groups are left: %s (%v)", found, err)
	}
	for _, path := range []string{tr.dir, tr.dir + ".lock"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
}

func links(t *testing.T) []string {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// processes are those of the machine that have not ended; one that has may still wait to be asked how.
func processes(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, running, err := procStat(pid); err == nil && running {
			pids = append(pids, pid)
		}
	}
	return pids
}

// namespacesOf is a process's namespaces by the path at which each can be opened.
func namespacesOf(pid int) map[string]string {
	all := map[string]string{}
	for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc", "cgroup"} {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, kind)
		if ns, err := os.Readlink(path); err == nil {
			all[path] = ns
		}
	}
	return all
}

func inCgroup(pid int, name string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(b), "/"+name+"/")
}

// TestLabLeavesNothing makes a lab of each family, uses it and removes it.
func TestLabLeavesNothing(t *testing.T) {
	for _, family := range []string{DualStack, IPv4, IPv6} {
		t.Run(family, func(t *testing.T) {
			c := config(t)
			c.IPFamily = family
			l := up(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			uses(ctx, t, l)
			tr := look(t, l)
			if err := l.Down(ctx); err != nil {
				t.Fatal(err)
			}
			tr.mustBeGone(t)
			if err := l.Down(ctx); err != nil {
				t.Errorf("Down of what is gone: %v", err)
			}
		})
	}
}

// uses runs commands in a lab's machines: they see their own host name and disk, and reach the host outside and each other on every address.
func uses(ctx context.Context, t *testing.T, l *Lab) {
	t.Helper()
	if out, err := l.Exec(ctx, "node2", "hostname"); err != nil || strings.TrimSpace(out) != "node2" {
		t.Errorf("hostname on node2 printed %q (%v)", out, err)
	}
	if out, err := l.Exec(ctx, "node1", "ls", "/var/lib"); err != nil || !strings.Contains(out, "kubelet") {
		t.Errorf("/var/lib of node1 holds %q (%v)", out, err)
	}
	if _, err := l.Exec(ctx, "node1", "test", "-e", l.Dir()); err == nil {
		t.Error("node1 sees this machine's files")
	}
	var exit *exec.ExitError
	if _, err := l.Exec(ctx, "node1", "sh", "-c", "echo reason >&2; exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "reason") {
		t.Errorf("a command that exits with 7 is error %v", err)
	}
	for i, ip := range l.OutsideIPs() {
		// The server says under which address it sees the client.
		script := fmt.Sprintf("echo hello | busybox nc -w 5 %s 7", ip)
		if out, err := l.Exec(ctx, "node1", "sh", "-c", script); err != nil || strings.TrimSpace(out) != l.NodeIPs("node1")[i].String()+" hello" {
			t.Errorf("the host outside answers %q (%v) on %s", out, err, ip)
		}
		ping(ctx, t, l, outside, l.NodeIPs("node2")[i])
	}
	for _, p := range hostAddresses(l.IPFamily(), tunNet, firstNode+1) {
		ping(ctx, t, l, "node1", p.Addr())
	}
}

// ping tries for a while: Open vSwitch takes a moment for a cable that was replaced.
func ping(ctx context.Context, t *testing.T, l *Lab, from string, to netip.Addr) {
	t.Helper()
	var err error
	for range 10 {
		if _, err = l.Exec(ctx, from, "busybox", "ping", "-c1", "-W1", to.String()); err == nil {
			return
		}
	}
	t.Errorf("%s does not reach %s: %v", from, to, err)
}

// TestLabRepairs breaks a lab in several ways; each time Up makes it whole, and leaves alone what is.
func TestLabRepairs(t *testing.T) {
	c := config(t)
	l := up(t, c)
	pids := func() map[string]int {
		p := map[string]int{}
		for _, name := range []string{hubName, outside, "node1", "node2"} {
			p[name] = l.machine(name).Process.Pid
		}
		return p
	}
	for _, broken := range [][]string{nil, {"node1"}, {hubName}, {outside, "node2"}} {
		before := pids()
		for _, name := range broken {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			p := l.machine(name).Process
			if err := errors.Join(p.signal(unix.SIGKILL), p.await(ctx)); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
		start := time.Now()
		l = up(t, c)
		t.Logf("up with %v broken took %s", broken, time.Since(start).Round(time.Millisecond))
		for name, pid := range pids() {
			if changed := pid != before[name]; changed != slices.Contains(broken, name) {
				t.Errorf("with %v broken: %s had pid %d and has %d", broken, name, before[name], pid)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		uses(ctx, t, l)
		cancel()
	}
}

// TestLabNodeLifeCycle stops, crashes and starts a node. Its disk survives, /run does not, and its place in the network is the same.
func TestLabNodeLifeCycle(t *testing.T) {
	c := config(t)
	l := up(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	mark := func() {
		t.Helper()
		if _, err := l.Exec(ctx, "node1", "sh", "-c", "touch /run/mark && ovs-vsctl --timeout=10 set open . external_ids:mark=1 && sync"); err != nil {
			t.Fatal(err)
		}
	}
	for name, end := range map[string]func(*Node, context.Context) error{"stop": (*Node).Stop, "crash": (*Node).Crash} {
		mark()
		if err := end(l.Node("node1"), ctx); err != nil {
			t.Fatal(err)
		}
		if l.machine("node1").Process.alive() {
			t.Errorf("after %s the node runs", name)
		}
		if _, err := l.Exec(ctx, "node1", "true"); err == nil {
			t.Errorf("after %s a command ran on the node", name)
		}
		if l = up(t, c); l.machine("node1").Process.alive() {
			t.Errorf("after %s, Up started a node that the user wants stopped", name)
		}
		if err := l.Node("node1").Start(ctx); err != nil {
			t.Fatal(err)
		}
		out, err := l.Exec(ctx, "node1", "sh", "-c", "ls /run/mark; ovs-vsctl --timeout=10 get open . external_ids:mark")
		if err != nil || strings.TrimSpace(out) != `"1"` {
			t.Errorf("after %s and start the node shows %q (%v): want the database's mark and no /run/mark", name, out, err)
		}
		uses(ctx, t, l)
	}
	if err := l.Node("node9").Stop(ctx); err == nil || !strings.Contains(err.Error(), "node2") {
		t.Errorf("stopping a node that does not exist: %v, want an error that names those that do", err)
	}
}

// TestLabSurvivesItsMakersDeath kills godwit-lab at moments over the whole of an up: the next down leaves nothing, or the next up makes a whole lab.
func TestLabSurvivesItsMakersDeath(t *testing.T) {
	c := config(t)
	dir, err := Dir(c.Name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	took := 4 * time.Second
	const moments = 12
	for i := range moments {
		cmd := exec.CommandContext(ctx, c.Program, "up", "--name", c.Name, "--nodes", "2", "--cni", CNINone)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(took * time.Duration(i*i) / (moments * moments)) // more of the early moments, when most is being made
		_ = cmd.Process.Kill()                                      // it may have ended
		_ = cmd.Wait()
		l, err := Open(dir)
		if errors.Is(err, ErrNoLab) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		tr := traces{cgroup: l.cgroupName(), dir: dir, links: links(t)}
		if i%3 == 2 {
			l = up(t, c)
			uses(ctx, t, l)
			tr = look(t, l)
		}
		if err := l.Down(ctx); err != nil {
			t.Fatalf("down after a death at moment %d: %v", i, err)
		}
		tr.mustBeGone(t)
	}
}

// TestInterruptedUpCleansUp ends an Up by its context, as Ctrl-C does.
func TestInterruptedUpCleansUp(t *testing.T) {
	c := config(t)
	dir, err := Dir(c.Name)
	if err != nil {
		t.Fatal(err)
	}
	before := links(t)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	l, err := Up(ctx, c)
	if err == nil {
		t.Fatalf("a lab in %s was up in a second and a half: the test needs another moment", l.Dir())
	}
	tr := traces{cgroup: (&Lab{dir: dir, state: &state{Name: c.Name}}).cgroupName(), dir: dir, links: before}
	tr.mustBeGone(t)
}

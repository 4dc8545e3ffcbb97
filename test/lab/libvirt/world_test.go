package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/test/lab/output"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

const (
	// patience bounds each wait for what takes a second or two on an idle machine.
	patience  = 2 * time.Minute
	pollEvery = 20 * time.Millisecond
)

// world is two launchers with libvirt, in namespaces that go with this process.
type world struct {
	user  int
	tools *packages.Root
	// init is the world's pid 1, and pids its namespace.
	init int
	pids string
	// ended is closed when it has.
	ended chan struct{}
	log   output.Buffer
}

// sockets are libvirt's, by which program it is: newer distributions have the one that KubeVirt has, too.
var sockets = [...]string{"virtqemud-sock", "libvirt-sock"}

// newWorld returns when both launchers' libvirt can be asked. LIBVIRT names a directory with libvirt and QEMU of another release, unpacked with all that they need.
func newWorld(t *testing.T, user int) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	tools, err := packages.EnsureLibvirt(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	emulator, err := packages.EnsureVM(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{user: user, tools: tools}
	s := spec{User: user}
	for _, tree := range []*packages.Root{tools, emulator} {
		if usr := filepath.Join(tree.Dir(), "usr"); exists(usr) {
			s.Usr = append(s.Usr, usr)
		}
	}
	if dir := os.Getenv("LIBVIRT"); dir != "" {
		s.Usr = []string{filepath.Join(dir, "usr")}
	}
	w.start(t, s)
	for _, name := range names {
		w.await(t, "libvirt in launcher "+name, func() bool { return w.listens(t, name) })
	}
	return w
}

// start starts the world's pid 1, with which all of it ends.
func (w *world) start(t *testing.T, s spec) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	arg, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, roleWorld, string(arg)) // not t.Context's: that ends before the cleanups
	cmd.Stdout, cmd.Stderr = &w.log, &w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	started := make(chan error)
	w.ended = make(chan struct{})
	go func() { // on one thread from its start to its end: Pdeathsig is about the thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
		close(w.ended)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start launchers: %v: this needs root and network, mount, pid, uts and ipc namespaces", err)
	}
	w.init = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("libvirt said:\n%s", w.log.String())
			w.showLogs(t)
		}
		_ = cmd.Process.Kill() // it may have ended
		<-w.ended
	})
	if w.pids, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", w.init)); err != nil {
		t.Fatal(err)
	}
}

// path is where this process finds what the launchers have as inShared.
func (w *world) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", w.init), shared, name)
}

// showLogs shows QEMU's.
func (w *world) showLogs(t *testing.T) {
	for _, pattern := range []string{"log-*/*/*.log", "log-*/*/*/*/*.log"} {
		files, err := filepath.Glob(w.path(pattern))
		for _, f := range files {
			var b []byte
			if b, err = os.ReadFile(f); err == nil {
				t.Logf("%s:\n%s", strings.TrimPrefix(f, w.path("")), b)
			}
		}
		if err != nil {
			t.Log(err)
		}
	}
}

// listens says whether a launcher's libvirt does, and gives it the name that KubeVirt's has.
func (w *world) listens(t *testing.T, name string) bool {
	for _, socket := range sockets {
		at := w.path(filepath.Join(name, socket))
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", at)
		if err != nil {
			continue
		}
		_ = conn.Close()
		if socket != sockets[0] {
			if err := os.Link(at, w.path(filepath.Join(name, sockets[0]))); err != nil {
				t.Fatal(err)
			}
		}
		return true
	}
	return false
}

// uri is libvirt's for the launcher whose directory of sockets is dir.
func (w *world) uri(dir string) string {
	driver := "system"
	if w.user != 0 {
		driver = "session"
	}
	return "qemu+unix:///" + driver + "?socket=" + filepath.Join(dir, sockets[0])
}

// try runs virsh at a launcher. Its input is what the VM is, so that no file is left of a test that is interrupted.
func (w *world) try(t *testing.T, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := w.tools.Command(ctx, "virsh", append([]string{"-q", "-c", w.uri(w.path(name))}, args...)...)
	cmd.Stdin = strings.NewReader(domain)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("virsh %s at %s: %w: %s", strings.Join(args, " "), name, err, bytes.TrimSpace(out))
	}
	return string(out), err
}

func (w *world) virsh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := w.try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// await polls.
func (w *world) await(t *testing.T, what string, there func() bool) {
	t.Helper()
	late := time.After(patience)
	for !there() {
		select {
		case <-w.ended:
			t.Fatalf("%s will not be there: the launchers have ended", what)
		case <-late:
			t.Fatalf("%s is not there after %s", what, patience)
		case <-time.After(pollEvery):
		}
	}
}

// process is the process of a launcher whose name begins so, as this process sees it, or 0.
func (w *world) process(t *testing.T, name, program string) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		// A process may end while it is looked at: it is none of ours then.
		pids, _ := os.Readlink(filepath.Join(p, "ns/pid"))
		host, _ := os.ReadFile(filepath.Join(p, "root/etc/hostname"))
		comm, _ := os.ReadFile(filepath.Join(p, "comm"))
		status, _ := os.ReadFile(filepath.Join(p, "status"))
		if pids != w.pids || strings.TrimSpace(string(host)) != name || !strings.HasPrefix(string(comm), program) || !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", w.init)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	return 0
}

// signal sends one to a launcher's program.
func (w *world) signal(t *testing.T, name, program string, sig syscall.Signal) {
	t.Helper()
	pid := w.process(t, name, program)
	if pid == 0 {
		t.Fatalf("launcher %s has no %s", name, program)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("%s to %s of %s: %v", sig, program, name, err)
	}
}

// told is an event and when it was told.
type told struct {
	event hypervisor.Event
	at    time.Time
}

// watch watches a launcher's VM until the test ends.
func (w *world) watch(t *testing.T, l hypervisor.Launcher) <-chan told {
	t.Helper()
	l.Pods = w.path("pods")
	events, err := hypervisor.Watch(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan told, 16) // more than there are: it does not wait for the test to look
	go func() {
		defer close(out)
		for e := range events {
			out <- told{e, time.Now()}
		}
	}()
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

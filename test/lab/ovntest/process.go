package ovntest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

const (
	// startTimeout bounds the wait for a daemon's socket; it takes milliseconds on an idle machine.
	startTimeout = 2 * time.Minute
	// stopTimeout is how long a daemon may take to end by itself.
	stopTimeout = 3 * time.Second
	pollEvery   = 5 * time.Millisecond
)

// daemon starts cmd in the namespace, returns its process, and ends it with the test. Its output and log are shown when the test fails.
func daemon(t testing.TB, ns *netns.Namespace, cmd *exec.Cmd, log string) *os.Process {
	t.Helper()
	// The test binary may be killed: its daemons must not survive it. The namespace's thread lives as long as the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("open a daemon's log: %v", err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatalf("start %s: %v", filepath.Base(cmd.Path), err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how a daemon ends does not matter; its log says it
	}()
	t.Cleanup(func() {
		stop(cmd.Process, ended)
		if t.Failed() {
			t.Logf("end of %s:\n%s", log, tail(log, 30))
		}
	})
	return cmd.Process
}

func stop(p *os.Process, ended <-chan struct{}) {
	_ = p.Signal(syscall.SIGCONT)
	_ = p.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		_ = p.Kill()
		<-ended
	}
}

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// awaitSocket returns when something accepts connections on a unix socket.
func awaitSocket(t testing.TB, path, log string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nothing listens on %s after %s: %v\n%s", path, startTimeout, err, tail(log, 30))
		case <-time.After(pollEvery):
		}
	}
}

// run runs a tool to its end.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
}

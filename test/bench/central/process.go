package central

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 10 * time.Second
)

// spawner starts processes from one thread that lives as long as it does: they are killed with this process, not with whatever thread Go used to start them.
type spawner chan func()

func newSpawner() spawner {
	s := make(spawner)
	go func() {
		runtime.LockOSThread()
		for f := range s {
			f()
		}
	}()
	return s
}

// close ends the thread, and whatever it started that still runs.
func (s spawner) close() { close(s) }

// Process is a running program.
type Process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// start runs cmd with its output in a file.
func (s spawner) start(cmd *exec.Cmd, log string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", filepath.Base(cmd.Path), err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return nil } // ended by Stop, in the order of its caller
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	s <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	p := &Process{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // how it ends does not matter; its log says it
	}()
	return p, nil
}

// Running returns an error when the process has ended.
func (p *Process) Running() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended: see %s", filepath.Base(p.cmd.Path), p.log)
	default:
		return nil
	}
}

// Signal sends a signal to the process, and does not wait.
func (p *Process) Signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) } // it may have ended already

// Stop ends the process and waits until it is gone.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		p.Signal(syscall.SIGKILL)
		<-p.ended
	}
}

// Usage is what a process has used so far.
type Usage struct {
	CPU time.Duration // in steps of 10 ms
	// RSS is its resident memory now, Peak the most that it was, in MiB.
	RSS, Peak float64
}

// UserHZ is the unit of times in /proc.
const UserHZ = time.Second / 100

// CPU is what a process has used of processors, all its threads, by the text of its /proc/PID/stat.
func CPU(stat string) (time.Duration, error) {
	// Fields after the name, which is in parentheses: utime and stime are the 14th and 15th of proc(5).
	_, rest, _ := strings.Cut(stat, ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("%d fields after the name, want at least 13", len(fields))
	}
	var sum time.Duration
	for _, f := range fields[11:13] {
		ticks, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * UserHZ
	}
	return sum, nil
}

// Usage reads /proc.
func (p *Process) Usage() (Usage, error) {
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return Usage{}, fmt.Errorf("read the use of %s: %w", filepath.Base(p.cmd.Path), err)
	}
	var u Usage
	if u.CPU, err = CPU(string(stat)); err != nil {
		return Usage{}, fmt.Errorf("%sstat: %w", dir, err)
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return Usage{}, fmt.Errorf("read the memory of %s: %w", filepath.Base(p.cmd.Path), err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
		switch name {
		case "VmRSS":
			u.RSS = kib / 1024
		case "VmHWM":
			u.Peak = kib / 1024
		}
	}
	return u, nil
}

// awaitSocket returns when something accepts connections on a unix socket.
func awaitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var d net.Dialer
	return Poll(ctx, "something listens on "+path, func() (bool, error) {
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return true, conn.Close()
	})
}

// Poll asks done every few milliseconds until it says yes, fails, or ctx ends. What is what the error says was waited for.
func Poll(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

package lab

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/cgroup"
)

// initLog is what a machine's own process says, before it has logs of its services and beside them.
const initLog = "init.log"

const (
	// stopTimeout is longer than a machine gives its services.
	stopTimeout = 10 * time.Second
	killTimeout = 20 * time.Second
	// beginTimeout is for how long a process that has been let begin may need to enter its control groups.
	beginTimeout = 20 * time.Second
)

// startMachine makes the machine's process, puts it on record and lets it begin. listener is the hub's, nil for others.
func (l *Lab) startMachine(ctx context.Context, spec *boot.Spec, listener *os.File) error {
	if err := l.plan(ctx, spec); err != nil {
		return err
	}
	ours, theirs, err := gate()
	if err != nil {
		return fmt.Errorf("start %s: %w", spec.Name, err)
	}
	defer func() { _ = ours.Close() }()
	defer func() { _ = theirs.Close() }()
	out, err := os.OpenFile(filepath.Join(spec.Logs, initLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", spec.Name, err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(l.path(programFile), "machine", l.specPath(spec.Name)) //nolint:noctx // the machine outlives this process
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.ExtraFiles = []*os.File{theirs}
	if listener != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, listener)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Setsid: true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w: this needs root and network, mount, pid, uts and ipc namespaces", spec.Name, err)
	}
	// Tests live longer than their machines, and must not keep them as zombies.
	go func() { _ = cmd.Wait() }()
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", spec.Name, err), cmd.Process.Kill())
	}
	if err := l.record(spec.Name, func(m *machine) { m.Process, m.Waiting, m.Started, m.Stopped = p, true, time.Now(), false }); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if err := errors.Join(theirs.Close(), open(ours)); err != nil {
		return fmt.Errorf("start %s: %w: see %s", spec.Name, err, out.Name())
	}
	return l.record(spec.Name, func(m *machine) { m.Waiting = false })
}

// gate makes the two ends of a machine's GateFD.
func gate() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a gate: %w", err)
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a gate: %w", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "gate"), os.NewFile(uintptr(fds[1]), "gate"), nil
}

// open lets a machine begin, and waits until it has, or has ended.
func open(gate *os.File) error {
	if err := gate.SetDeadline(time.Now().Add(beginTimeout)); err != nil {
		return fmt.Errorf("let it begin: %w", err)
	}
	if _, err := gate.Write([]byte{1}); err != nil {
		return fmt.Errorf("let it begin: %w", err)
	}
	if _, err := gate.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait until it has begun: %w", err)
	}
	return nil
}

// runs says whether a machine runs. One that has not been let begin is about to end: who made it has died. That is for who has locked the lab.
func (m machine) runs() bool { return m.Process.alive() && !m.Waiting }

// withLogs adds to an error the ends of the logs of those machines that have ended: it is theirs then, and the logs go with the lab.
func (l *Lab) withLogs(err error, machines ...string) error {
	if err == nil {
		return nil
	}
	for _, name := range machines {
		if !l.machine(name).Process.alive() {
			err = fmt.Errorf("%w; %s has ended, its log ends with: %s", err, name, lastLines(l.path(logsDir, name, initLog)))
		}
	}
	return err
}

// lastLines are the last of a log.
func lastLines(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// plan records a machine before any of it exists, and makes what its process needs.
func (l *Lab) plan(ctx context.Context, spec *boot.Spec) error {
	// What an earlier process of this machine left.
	if err := l.clear(ctx, spec.Name); err != nil {
		return err
	}
	dirs, err := cgroup.Plan(l.cgroupName(), spec.Name)
	if err != nil {
		return err
	}
	if spec.Hierarchies, err = cgroup.Hierarchies(); err != nil {
		return err
	}
	spec.Cgroups = dirs
	if err := l.record(spec.Name, func(m *machine) { m.Cgroups = dirs }); err != nil {
		return err
	}
	if err := os.Remove(spec.StatusFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old status of %s: %w", spec.Name, err)
	}
	b, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("describe %s: %w", spec.Name, err)
	}
	if err := os.WriteFile(l.specPath(spec.Name), b, 0o600); err != nil {
		return fmt.Errorf("describe %s: %w", spec.Name, err)
	}
	return cgroup.Make(dirs)
}

// cgroupName is the same for the same lab always, and different for labs of one name in different directories.
func (l *Lab) cgroupName() string {
	return fmt.Sprintf("godwit-lab-%s-%x", l.name(), sha256.Sum256([]byte(l.dir)))[:len("godwit-lab-")+len(l.name())+9]
}

// stopMachine ends a machine: asking it to, or at once.
func (l *Lab) stopMachine(ctx context.Context, name string, sig unix.Signal) error {
	p := l.machine(name).Process
	if sig != unix.SIGKILL {
		if err := p.signal(sig); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
		wait, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		_ = p.await(wait) // it is killed below if it has not ended
	}
	return l.clear(ctx, name)
}

// clear kills what is left of a machine and removes its control groups.
func (l *Lab) clear(ctx context.Context, name string) error {
	m := l.machine(name)
	if m.Process == (process{}) && m.Cgroups == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := errors.Join(m.Process.signal(unix.SIGKILL), m.Process.await(ctx), cgroup.Kill(m.Cgroups)); err != nil {
		return fmt.Errorf("end %s: %w", name, err)
	}
	if err := cgroup.Remove(ctx, m.Cgroups); err != nil {
		return fmt.Errorf("end %s: %w", name, err)
	}
	return l.record(name, func(m *machine) { m.Process, m.Cgroups = process{}, nil })
}

// listen opens the local port that the hub carries to the API server: the one of before, so that kubeconfigs stay valid, or a free one.
func listen(ctx context.Context, port int) (*os.File, int, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil && port != 0 {
		ln, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open a local port for the API server: %w", err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, 0, fmt.Errorf("open a local port for the API server: got a %T", ln)
	}
	addr, ok := tcp.Addr().(*net.TCPAddr)
	if !ok {
		return nil, 0, fmt.Errorf("open a local port for the API server: got address %s", tcp.Addr())
	}
	f, err := tcp.File()
	return f, addr.Port, errors.Join(err, tcp.Close()) // f is a duplicate
}

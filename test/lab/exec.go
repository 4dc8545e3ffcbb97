package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// bootTimeout bounds the wait for a machine that has just been started; it takes a tenth of a second.
const bootTimeout = 2 * time.Minute

// Stdio is what a command in a machine reads and writes; nil is nothing.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command on a node, in all of its namespaces, and returns what it wrote to its standard output. The error of a command that fails has
// what it wrote to its standard error.
func (l *Lab) Exec(ctx context.Context, node string, argv ...string) (string, error) {
	var out, stderr bytes.Buffer
	err := l.Run(ctx, node, Stdio{Out: &out, Err: &stderr}, argv...)
	if err != nil {
		err = fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), node, err, lastBytes(stderr.String(), 1000))
	}
	return out.String(), err
}

// Outside is Exec on the host that is no node.
func (l *Lab) Outside(ctx context.Context, argv ...string) (string, error) {
	return l.Exec(ctx, outside, argv...)
}

func lastBytes(s string, n int) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-n):]
}

// Run runs a command on a machine: a node, "outside" or "hub". The error of a command that ran and failed is an *exec.ExitError.
func (l *Lab) Run(ctx context.Context, name string, stdio Stdio, argv ...string) error {
	p, err := l.processOf(name)
	if err != nil {
		return fmt.Errorf("run a command on %s: %w", name, err)
	}
	spec, err := boot.ReadSpec(l.specPath(name))
	if err != nil {
		return err
	}
	env, err := environ(spec)
	if err != nil {
		return err
	}
	if err := awaitBoot(ctx, spec, p); err != nil {
		return fmt.Errorf("run a command on %s: %w", name, err)
	}
	done := make(chan error, 1)
	netns.OnThread(func() { done <- runIn(ctx, p, env, stdio, argv) })
	return <-done
}

// Namespace is the path of a machine's network namespace, for sockets of this process: of a node, "outside" or "hub". It is another one when the machine is
// started again.
func (l *Lab) Namespace(name string) (string, error) {
	p, err := l.processOf(name)
	if err != nil {
		return "", fmt.Errorf("find the network namespace of %s: %w", name, err)
	}
	return netnsOf(p), nil
}

// processOf is the process that is a machine; an error if it does not run.
func (l *Lab) processOf(name string) (process, error) {
	if m := l.machine(name); m.Process.alive() {
		return m.Process, nil
	}
	// Another process may have started it since this one read the state.
	s, err := readState(l.dir)
	if err != nil {
		return process{}, err
	}
	now := s.Machines[name]
	if names := append([]string{hubName, outside}, l.NodeNames()...); now == nil && !slices.Contains(names, name) {
		return process{}, fmt.Errorf("there is no machine %s: the lab's machines are %s", name, strings.Join(names, " "))
	}
	if now == nil || !now.Process.alive() {
		return process{}, errors.New("it does not run: see godwit-lab status")
	}
	return now.Process, nil
}

// awaitBoot returns when a machine has its own root and mounts, which is before its supervisor starts to write.
func awaitBoot(ctx context.Context, spec *boot.Spec, p process) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		_, err := os.Stat(spec.StatusFile())
		if err == nil {
			return nil
		}
		if !p.alive() {
			return errors.New("it ended while it booted")
		}
		if pauseErr := pause(ctx, poll/10); pauseErr != nil {
			return fmt.Errorf("it has not booted: %w", errors.Join(err, pauseErr))
		}
	}
}

// environ is a command's environment. Nodes have everything in /usr.
func environ(spec *boot.Spec) ([]string, error) {
	env := []string{"HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
	if spec.Kind == boot.Node {
		return append(env, "PATH="+boot.NodePath), nil
	}
	root, err := packages.Open(spec.Packages)
	if err != nil {
		return nil, err
	}
	return append(env, root.Environ()...), nil
}

// runIn runs a command in all namespaces of a process. The calling thread is spoilt by it.
func runIn(ctx context.Context, p process, env []string, stdio Stdio, argv []string) error {
	if err := enterAll(p); err != nil {
		return err
	}
	// env finds the program in the machine's PATH and files; this process would look in its own.
	cmd := exec.CommandContext(ctx, "/usr/bin/env", argv...)
	cmd.Env, cmd.Dir = env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	cmd.WaitDelay = time.Second
	return cmd.Run()
}

func enterAll(p process) error {
	// The mount namespace last: the others' paths are this one's.
	kinds := []struct {
		name string
		flag int
	}{
		{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"pid", unix.CLONE_NEWPID}, {"cgroup", unix.CLONE_NEWCGROUP},
		{"mnt", unix.CLONE_NEWNS},
	}
	// A thread that shares its root directory with others may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("part with this process's root directory: %w", err)
	}
	for _, k := range kinds {
		path := fmt.Sprintf("/proc/%d/ns/%s", p.Pid, k.name)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", path, err)
		}
		err = unix.Setns(fd, k.flag)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("enter namespace %s: %w", path, err)
		}
	}
	return nil
}

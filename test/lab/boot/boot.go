package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/cgroup"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// File descriptors that a machine inherits.
const (
	// GateFD is a stream socket: the machine begins when it reads a byte, and ends if the other end is closed without one, so that no machine runs that whoever started it has not put on
	// record. It closes its end when it has begun, in that it has executed the program again: until then the process has moments without namespaces.
	GateFD = 3
	// ListenerFD, of the hub only, is a listening socket of the host's: connections to it are carried to the API server.
	ListenerFD = 4
)

// bootedEnv tells the second stage from the first.
const bootedEnv = "GODWIT_LAB_BOOTED"

// Run is pid 1 of the machine that specPath describes. It returns when the machine has been asked to stop, or could not start.
//
// The first stage enters the machine's control groups and makes them the root of a new cgroup namespace, and a chroot the root of the mount namespace, which a
// thread does for itself only; executing the program again makes it so for all threads.
func Run(ctx context.Context, log *slog.Logger, specPath string) error {
	spec, err := ReadSpec(specPath)
	if err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return errors.New("a machine of the lab must be pid 1 of a pid namespace: use godwit-lab up")
	}
	if os.Getenv(bootedEnv) == "" {
		return firstStage(spec)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	log = log.With("machine", spec.Name)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the machine's mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	switch spec.Kind {
	case Hub:
		return runHub(ctx, log, spec)
	case Node:
		return runNode(ctx, log, spec)
	case Outside:
		return runOutside(ctx, log, spec)
	}
	return fmt.Errorf("unknown kind of machine %q", spec.Kind)
}

func firstStage(spec *Spec) error {
	var b [1]byte
	n, err := unix.Read(GateFD, b[:])
	if err != nil || n != 1 {
		return errors.Join(errors.New("whoever started this machine is gone"), err)
	}
	unix.CloseOnExec(GateFD)
	if err := cgroup.Enter(spec.Cgroups); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := leaveChroot(); err != nil {
		return fmt.Errorf("make this chroot the machine's root: %w", err)
	}
	// Nothing of the caller's environment: a proxy setting, for one, would keep kubelets from the API server.
	env := []string{bootedEnv + "=1", "HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := unix.Exec(self, os.Args, env); err != nil {
		return fmt.Errorf("execute %s again: %w", self, err)
	}
	return nil
}

// mountProc replaces /proc, which shows the host's processes, for machines that keep the host's files.
func mountProc() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// usePackages lets this process, and all that it starts, find the programs and libraries of the unpacked packages. Nodes have them in /usr instead.
func usePackages(spec *Spec) (*packages.Root, error) {
	root, err := packages.Open(spec.Packages)
	if err != nil {
		return nil, err
	}
	for _, kv := range root.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return nil, fmt.Errorf("set the machine's environment: %w", err)
		}
	}
	return root, nil
}

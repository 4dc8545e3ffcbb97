// Package supervise is what pid 1 of the lab's machines does: it starts services in the order of their needs, restarts those that end, reaps
// orphans, and writes what it knows to a file that others read.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// A service that ends is started again after firstRestart; the wait doubles up to lastRestart while it does not become ready.
	firstRestart = 200 * time.Millisecond
	lastRestart  = 5 * time.Second
	// readyPoll is how often a service that was started is asked whether it is ready.
	readyPoll = 20 * time.Millisecond
	// readyTimeout is how long a service may take before it is killed and started again.
	readyTimeout = 5 * time.Minute
	// stopTimeout is how long everything may take to end by itself after SIGTERM.
	stopTimeout = 5 * time.Second
	// maxLog is the size in bytes at which a log is set aside when its service starts.
	maxLog = 32 << 20
)

// Service is one daemon.
type Service struct {
	Name string
	// Argv is the command; Argv[0] is looked up in the supervisor's PATH.
	Argv []string
	// Env is added to the supervisor's environment.
	Env []string
	// Needs are services that must have become ready before this is started first.
	Needs []string
	// Before runs before each start; nil for nothing. A failure is retried like the service's end.
	Before func(ctx context.Context) error
	// Ready returns nil when the service serves; it is called until then. Nil: ready when started.
	Ready func(ctx context.Context) error
	// After runs each time that the service has become ready, before those that need it are started; nil for nothing.
	After func(ctx context.Context) error
}

// Supervisor runs services. Use New.
type Supervisor struct {
	log    *slog.Logger
	reaper *Reaper
	logs   string
	status *statusFile
	ready  map[string]chan struct{}
}

// New returns a supervisor that writes each service's output to logs/NAME.log and its knowledge to the file at status.
func New(log *slog.Logger, logs, status string) *Supervisor {
	return &Supervisor{log: log, reaper: NewReaper(), logs: logs, status: newStatusFile(status), ready: map[string]chan struct{}{}}
}

// Command runs a command to its end, with its output in logs/NAME.log. It works while Run does.
func (s *Supervisor) Command(ctx context.Context, name string, argv ...string) error {
	out, err := s.openLog(name)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // the reaper kills it when ctx ends
	cmd.Stdout, cmd.Stderr = out, out
	if err := s.reaper.RunCommand(ctx, cmd); err != nil {
		return fmt.Errorf("%s: %w: its output is in %s", argv[0], err, out.Name())
	}
	return nil
}

// Run runs the services until ctx ends, then asks every process of the pid namespace to end and waits for that for a while. The process is
// expected to exit afterwards, upon which the kernel kills what is left.
func (s *Supervisor) Run(ctx context.Context, services []Service) error {
	for _, svc := range services {
		s.ready[svc.Name] = make(chan struct{})
	}
	for _, svc := range services {
		for _, need := range svc.Needs {
			if s.ready[need] == nil {
				return fmt.Errorf("service %s needs %s, which does not exist", svc.Name, need)
			}
		}
	}
	reaping, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReaping()
	reaped := make(chan error, 1)
	go func() { reaped <- s.reaper.Run(reaping) }()
	g, gctx := errgroup.WithContext(ctx)
	for _, svc := range services {
		g.Go(func() error { return s.keep(gctx, svc) })
	}
	err := g.Wait()
	s.log.Info("stopping", "reason", context.Cause(ctx))
	s.stopAll()
	stopReaping()
	return errors.Join(err, <-reaped)
}

// keep runs one service again and again.
func (s *Supervisor) keep(ctx context.Context, svc Service) error {
	for _, need := range svc.Needs {
		select {
		case <-s.ready[need]:
		case <-ctx.Done():
			return nil
		}
	}
	wait := firstRestart
	for {
		wasReady, err := s.once(ctx, svc)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // everything ends now, and this did
		}
		if wasReady {
			wait = firstRestart
		}
		s.log.Warn("service ended, starting it again", "service", svc.Name, "err", err, "wait", wait)
		s.status.ended(svc.Name, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRestart)
	}
}

// once runs a service until it ends.
func (s *Supervisor) once(ctx context.Context, svc Service) (wasReady bool, err error) {
	if svc.Before != nil {
		if err := svc.Before(ctx); err != nil {
			return false, fmt.Errorf("prepare %s: %w", svc.Name, err)
		}
	}
	out, err := s.openLog(svc.Name)
	if err != nil {
		return false, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(svc.Argv[0], svc.Argv[1:]...) //nolint:noctx // it is asked to end, with all others, by stopAll
	cmd.Env = append(os.Environ(), svc.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	start := time.Now()
	ended, err := s.reaper.Start(cmd)
	if err != nil {
		return false, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	s.status.started(svc.Name, cmd.Process.Pid)
	if err := s.becomeReady(ctx, svc, ended); err != nil {
		_ = cmd.Process.Kill() // it may have ended already
		return false, err
	}
	s.log.Info("service is ready", "service", svc.Name, "pid", cmd.Process.Pid, "took", time.Since(start).Round(time.Millisecond))
	s.status.ready(svc.Name)
	if ch := s.ready[svc.Name]; !closed(ch) { // only this goroutine closes it
		close(ch)
	}
	select {
	case status := <-ended:
		return true, errors.Join(statusError(status), fmt.Errorf("%s ended after %s", svc.Name, time.Since(start).Round(time.Millisecond)))
	case <-ctx.Done():
		return true, nil
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (s *Supervisor) becomeReady(ctx context.Context, svc Service, ended <-chan unix.WaitStatus) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for svc.Ready != nil {
		err := svc.Ready(ctx)
		if err == nil {
			break
		}
		select {
		case status := <-ended:
			return errors.Join(fmt.Errorf("%s ended before it was ready", svc.Name), statusError(status))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %s: %w", svc.Name, readyTimeout, err)
		case <-time.After(readyPoll):
		}
	}
	if svc.After != nil {
		if err := svc.After(ctx); err != nil {
			return fmt.Errorf("after the start of %s: %w", svc.Name, err)
		}
	}
	return nil
}

// stopAll sends SIGTERM to every process of the pid namespace and returns when none is left, or after stopTimeout.
func (s *Supervisor) stopAll() {
	if os.Getpid() != 1 {
		return // in a test: -1 would be every process of the machine
	}
	if err := unix.Kill(-1, unix.SIGTERM); err != nil {
		return // nobody is left
	}
	deadline := time.Now().Add(stopTimeout)
	for time.Now().Before(deadline) {
		if err := unix.Kill(-1, 0); errors.Is(err, unix.ESRCH) {
			return
		}
		time.Sleep(readyPoll)
	}
}

func (s *Supervisor) openLog(name string) (*os.File, error) {
	path := filepath.Join(s.logs, name+".log")
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, fmt.Errorf("set a long log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	return f, nil
}

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper waits for all children of a process that is pid 1 of a pid namespace: those that it started, and orphans that the kernel gave it.
// os/exec's own Wait must not be used beside it, as either would take the other's children.
type Reaper struct {
	mu       sync.Mutex
	children map[int]chan unix.WaitStatus
}

// NewReaper returns a Reaper; Run does the work.
func NewReaper() *Reaper { return &Reaper{children: map[int]chan unix.WaitStatus{}} }

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) error {
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	defer signal.Stop(sigchld)
	for {
		// Signals are merged by the kernel and by the channel, so each means "one or more". The first turn takes what ended before Notify.
		if err := r.reap(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-sigchld:
		}
	}
}

// reap collects everything that has ended.
func (r *Reaper) reap() error {
	// Held so that a child that ends at once is not looked up before Start has put it into the map.
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("reap children: %w", err)
		}
		if ended, ok := r.children[pid]; ok {
			delete(r.children, pid)
			ended <- status
		}
	}
}

// Start starts cmd, whose output must be files. The channel gets its status when it ends, once.
func (r *Reaper) Start(cmd *exec.Cmd) (<-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	r.children[cmd.Process.Pid] = ended
	return ended, nil
}

// RunCommand starts cmd and waits for it; ending otherwise than with status 0 is an error. It is killed when ctx ends.
func (r *Reaper) RunCommand(ctx context.Context, cmd *exec.Cmd) error {
	ended, err := r.Start(cmd)
	if err != nil {
		return err
	}
	select {
	case status := <-ended:
		return statusError(status)
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		return ctx.Err()
	}
}

// statusError is nil for a process that exited with 0.
func statusError(status unix.WaitStatus) error {
	switch {
	case status.Signaled():
		return fmt.Errorf("killed by %s", unix.SignalName(status.Signal()))
	case status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return nil
}

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// process is a program beside the machine, in the network namespace that the machine reaches.
type process struct {
	name, log string
	ended     chan struct{}
	cmd       *exec.Cmd
}

// beside starts a program beside the machine. It logs to a file of the cluster's directory and ends with the cluster, or with this process, however that ends.
func (c *Cluster) beside(cmd *exec.Cmd) (*process, error) {
	name := filepath.Base(cmd.Path)
	p := &process{name: name, log: filepath.Join(c.dir, name+".log"), ended: make(chan struct{}), cmd: cmd}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return nil } // the context is that of who starts it, and shorter than its life
	// The machine's thread lives as long as this process. A group of its own: Ctrl-C is for the tests.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = cmd.Wait() // its log says why
		close(p.ended)
	}()
	c.mu.Lock()
	c.processes = append(c.processes, p)
	c.mu.Unlock()
	return p, nil
}

// stop ends the process. Nothing of it is kept, so it need not end well.
func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// end asks the process to end, and returns when it has: a controller gives its Lease up.
func (p *process) end(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end %s: %w", p.name, ctx.Err())
	}
}

// awaitProcesses is Await for what processes do: it returns at once when one has ended, and its error has the ends of their logs.
func awaitProcesses(ctx context.Context, what string, processes []*process, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := Await(ctx, what, func(ctx context.Context) error {
		for _, p := range processes {
			select {
			case <-p.ended:
				err := fmt.Errorf("%s has ended", p.name)
				cancel(err)
				return err
			default:
			}
		}
		return check(ctx)
	})
	if err == nil {
		return nil
	}
	for _, p := range processes {
		b, rerr := os.ReadFile(p.log)
		err = errors.Join(err, rerr, fmt.Errorf("end of %s: %s", filepath.Base(p.log), b[max(0, len(b)-2000):]))
	}
	return err
}

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// downTimeout bounds the removal of a lab whose Up failed or was interrupted.
const downTimeout = 5 * time.Minute

// Up makes the lab, or repairs and updates an existing one, and returns when its nodes are ready. It changes nothing in a lab that is as c wants
// it. A new lab is removed again when Up fails or ctx ends, unless c.Keep is set.
func Up(ctx context.Context, c Config) (*Lab, error) {
	dir, err := Dir(cmp.Or(c.Name, defaultName))
	if err != nil {
		return nil, err
	}
	// Before anything of a lab that cannot be is on the disk. What is taken over from an existing one has been looked at when it was made.
	if err := c.Defaults().Validate(); err != nil {
		return nil, fmt.Errorf("the lab's configuration: %w", err)
	}
	if err := preflight(dir); err != nil {
		return nil, err
	}
	unlock, err := lockLab(ctx, c.Defaults().Log, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := readState(dir)
	if err == nil {
		c = c.inherit(old)
	} else if !errors.Is(err, ErrNoLab) {
		return nil, err
	}
	c = c.Defaults()
	l, err := record(dir, old, c)
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx, c); err != nil {
		if c.Keep || l.state.Complete {
			return nil, fmt.Errorf("%w\nlogs are in %s", err, l.path(logsDir))
		}
		c.Log.Info("removing the unfinished lab")
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		return nil, errors.Join(err, l.remove(down))
	}
	return l, nil
}

// record puts the lab on record before anything of it exists. s is what is on record, nil for nothing.
func record(dir string, s *state, c Config) (*Lab, error) {
	switch {
	case s == nil:
		s = &state{Name: c.Name, IPFamily: c.IPFamily, CNI: c.CNI, OVN: c.OVN, Containerd: c.Containerd, Plain: c.Plain, Machines: map[string]*machine{}}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the lab's directory: %w", err)
		}
	case s.IPFamily != c.IPFamily || s.CNI != c.CNI || s.ovn() != c.OVN || s.containerd() != c.Containerd || s.Nodes > c.Nodes:
		return nil, fmt.Errorf("lab %s exists with %d nodes, ip family %s, cni %s, ovn %s, containerd %s: remove it with godwit-lab down to have %d nodes, %s, %s, %s, %s",
			s.Name, s.Nodes, s.IPFamily, s.CNI, s.ovn(), s.containerd(), c.Nodes, c.IPFamily, c.CNI, c.OVN, c.Containerd)
	}
	if err := s.take(c); err != nil {
		return nil, err
	}
	s.Nodes = c.Nodes
	return &Lab{dir: dir, log: c.Log, state: s}, writeState(dir, s)
}

func (l *Lab) up(ctx context.Context, c Config) error {
	if err := l.prepare(ctx, c); err != nil {
		return err
	}
	if err := l.ensureHub(ctx); err != nil {
		return err
	}
	digest, err := BuildImages(ctx, l.log, l.path(imagesDir), Build{CNI: c.CNI, OVN: c.OVN})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range c.Nodes {
		name := nodeName(i + 1)
		if l.machine(name).Stopped {
			l.log.Warn("node is stopped and stays so", "node", name)
			continue
		}
		g.Go(func() error { return l.ensureMachine(gctx, l.spec(boot.Node, name, i+1)) })
	}
	g.Go(func() error { return l.ensureMachine(gctx, l.spec(boot.Outside, outside, 0)) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.awaitAPI(ctx); err != nil {
		return err
	}
	if err := l.applyKubeVirt(ctx); err != nil {
		return err
	}
	if err := l.deploy(ctx, c, digest); err != nil {
		return err
	}
	if err := l.awaitKubeVirt(ctx); err != nil {
		return err
	}
	stage := nodesWith(c.CNI)
	if c.Empty {
		stage = nodesReported
	}
	if err := l.awaitNodes(ctx, stage); err != nil {
		return err
	}
	return l.update(func(s *state) { s.Complete = true })
}

// prepare gets everything that machines are made of.
func (l *Lab) prepare(ctx context.Context, c Config) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { l.packages, err = packages.Ensure(gctx, l.log); return err })
	g.Go(func() (err error) { l.binaries, err = binaries.Ensure(gctx, l.log); return err })
	if c.Containerd == ContainerdNew {
		g.Go(func() (err error) { l.containerd, err = binaries.Containerd(gctx, l.log); return err })
	}
	g.Go(func() error { return l.installProgram(gctx, c.Program) })
	if err := g.Wait(); err != nil {
		return err
	}
	return l.makeCredentials(time.Now())
}

// installProgram puts the program that machines run where it stays, whatever becomes of the caller's.
func (l *Lab) installProgram(ctx context.Context, program string) error {
	if program == "" {
		programs, release, err := source.Programs(ctx, l.log, "./cmd/godwit-lab")
		if err != nil {
			return err
		}
		defer release()
		program = filepath.Join(programs, programFile)
	}
	// A rename, since the file may be running.
	tmp := l.path(programFile + ".new")
	if err := copyProgram(program, tmp); err != nil {
		return fmt.Errorf("install the machines' program: %w", err)
	}
	if err := os.Rename(tmp, l.path(programFile)); err != nil {
		return fmt.Errorf("install the machines' program: %w", err)
	}
	return nil
}

func copyProgram(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// ensureHub starts the hub unless it runs, and makes its bridges.
func (l *Lab) ensureHub(ctx context.Context) error {
	spec := l.spec(boot.Hub, hubName, 0)
	if !l.machine(hubName).runs() {
		if err := l.startHub(ctx, spec); err != nil {
			return err
		}
	}
	return l.withLogs(makeBridges(l.machine(hubName).Process, l.IPFamily()), hubName)
}

func (l *Lab) startHub(ctx context.Context, spec *boot.Spec) error {
	l.log.Info("starting the control plane")
	if err := l.deploySecrets(spec); err != nil {
		return err
	}
	listener, port, err := listen(ctx, l.state.Port)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	if err := l.update(func(s *state) { s.Port = port }); err != nil {
		return err
	}
	if err := l.writeKubeconfig(l.Kubeconfig(), "admin", fmt.Sprintf("https://127.0.0.1:%d", port)); err != nil {
		return err
	}
	return l.startMachine(ctx, spec, listener)
}

// ensureMachine starts a machine unless it runs, and plugs it in.
func (l *Lab) ensureMachine(ctx context.Context, spec *boot.Spec) error {
	if !l.machine(spec.Name).runs() {
		l.log.Info("starting", "machine", spec.Name)
		if err := l.deploySecrets(spec); err != nil {
			return err
		}
		if err := l.startMachine(ctx, spec, nil); err != nil {
			return err
		}
	}
	return l.withLogs(connect(l.machine(hubName).Process, l.machine(spec.Name).Process, spec), hubName, spec.Name)
}

// Package cluster is Godwit on Open vSwitch's kernel datapath: in one virtual machine (package vm) nodes as network namespaces, each with its own Open vSwitch, connection
// tracking, ovn-controller and agent; beside the machine etcd, the API server, OVN's databases with northd, and the controller.
//
// Outside is what has nothing to do with the kernel that is tested: emulated, by one processor, it takes ten to thirty times as long. There is no kubelet: the tests create
// pods, and call godwit-cni as a container runtime does. A pod is a network namespace.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/kernel/control"
	"github.com/godwit-cni/godwit/test/kernel/vm"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// patience bounds every wait for another program. It is for emulated processors on a busy machine; an idle one needs seconds.
const patience = 3 * time.Minute

const pollEvery = 50 * time.Millisecond

// Config says what a cluster has.
type Config struct {
	// Nodes is their number; at least 1.
	Nodes int
	// Programs are packages of this checkout whose programs the machine has besides Godwit's.
	Programs []string
	// Controller are flags of the controller besides its usual ones.
	Controller []string
	Log        *slog.Logger
}

// Cluster runs. Its methods are safe for concurrent use.
type Cluster struct {
	*vm.Machine
	// API is an administrator's client.
	API client.Client
	// Nodes in the order of their names, node1 and so on.
	Nodes []*Node

	// dir has what is beside the machine: logs, databases, sockets, credentials. Its path is short: a unix socket's has at most 107 bytes.
	dir  string
	ovn  *packages.Root
	rest *rest.Config
	api  *apiServer
	log  *slog.Logger
	// controller is its process, as it was started last.
	controller *process

	mu        sync.Mutex
	processes []*process
}

// Up makes a cluster and returns when its nodes can have pods. It needs root.
func Up(ctx context.Context, c Config) (cl *Cluster, err error) {
	start := time.Now()
	cl = &Cluster{log: c.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, cl.Down())
		}
	}()
	if cl.dir, err = os.MkdirTemp("", "gwkc"); err != nil {
		return cl, fmt.Errorf("make a directory for the cluster: %w", err)
	}
	if cl.ovn, err = packages.Ensure(ctx, c.Log); err != nil {
		return cl, err
	}
	programs := append([]string{"./cmd/godwit-agent", "./cmd/godwit-cni", "./cmd/godwit-ovn"}, c.Programs...)
	if cl.Machine, err = vm.Boot(ctx, vm.Config{Programs: programs, Log: c.Log}); err != nil {
		return cl, err
	}
	var g errgroup.Group
	g.Go(func() error { return cl.startAPI(ctx) })
	g.Go(func() error { return cl.startOVN(ctx, c.Nodes) })
	if err := g.Wait(); err != nil {
		return cl, err
	}
	if err := cl.startGodwit(ctx, c.Controller); err != nil {
		return cl, err
	}
	c.Log.Info("the cluster is ready", "nodes", c.Nodes, "took", time.Since(start).Round(time.Millisecond))
	return cl, nil
}

func (c *Cluster) startAPI(ctx context.Context) error {
	var err error
	if c.api, err = c.startAPIServer(ctx); err != nil {
		return err
	}
	c.rest = c.api.config()
	c.rest.Dial = c.Dial
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	if err := c.api.await(ctx, c.rest); err != nil {
		return err
	}
	if c.API, err = client.New(c.rest, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	return c.applyManifests(ctx)
}

// Down ends the cluster and removes what belongs to it. It must be called once, and no other method after it.
func (c *Cluster) Down() error {
	for _, p := range c.processes {
		p.stop()
	}
	var err error
	if c.Machine != nil {
		err = c.Close()
	}
	if c.dir != "" {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

// In runs a command in a network namespace of the machine and returns its standard output; an exit status other than 0 is an error.
func (c *Cluster) In(ctx context.Context, netns string, args ...string) (string, error) {
	return c.Run(ctx, control.Command{Netns: netns, Args: args})
}

// NBCtl runs ovn-nbctl.
func (c *Cluster) NBCtl(ctx context.Context, args ...string) (string, error) {
	return c.ctl(ctx, "ovn-nbctl", nbSocket, args)
}

// SBCtl runs ovn-sbctl.
func (c *Cluster) SBCtl(ctx context.Context, args ...string) (string, error) {
	return c.ctl(ctx, "ovn-sbctl", sbSocket, args)
}

func (c *Cluster) ctl(ctx context.Context, program, socket string, args []string) (string, error) {
	cmd := c.ovn.Command(ctx, program, append([]string{"--db=unix:" + c.file(socket), "--timeout=30"}, args...)...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// file is one of the cluster's directory, beside the machine.
func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// Logs is the end of each program's log, in the machine and beside it but for etcd's and the API server's.
func (c *Cluster) Logs(ctx context.Context, lines int) string {
	tail := fmt.Sprintf("tail -n %d ", lines)
	inside, err := c.In(ctx, "", "sh", "-c", tail+filepath.Join(logDir, "*.log"))
	if err != nil {
		inside = err.Error()
	}
	beside, err := exec.CommandContext(ctx, "sh", "-c", tail+c.file("*ov*.log")+" "+c.file("godwit-*.log")).CombinedOutput()
	if err != nil {
		inside += err.Error()
	}
	return inside + string(beside)
}

// Await calls check until it returns nil, or ctx or patience ends. what is the beginning of the error's text.
func Await(ctx context.Context, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(pollEvery):
		}
	}
}

// Package cluster is Godwit on Open vSwitch's kernel datapath: in one virtual machine (package vm) OVN, the controller, and nodes as network namespaces, each with its own
// Open vSwitch, connection tracking, ovn-controller and agent; beside the machine etcd and the API server.
//
// The API server is outside because it is three quarters of the work and has nothing to do with the kernel that is tested: emulated, it takes a minute to start, outside
// two seconds. There is no kubelet: the tests create pods, and call godwit-cni as a container runtime does. A pod is a network namespace.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	Log      *slog.Logger
}

// Cluster runs. Its methods are safe for concurrent use.
type Cluster struct {
	*vm.Machine
	// API is an administrator's client.
	API client.Client
	// Nodes in the order of their names, node1 and so on.
	Nodes []*Node

	dir  string
	rest *rest.Config
	api  *apiServer
	log  *slog.Logger
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
	programs := append([]string{"./cmd/godwit-agent", "./cmd/godwit-cni", "./cmd/godwit-controller"}, c.Programs...)
	if cl.Machine, err = vm.Boot(ctx, vm.Config{Programs: programs, Log: c.Log}); err != nil {
		return cl, err
	}
	var g errgroup.Group
	g.Go(func() error { return cl.startAPI(ctx) })
	g.Go(func() error { return cl.startOVN(ctx, c.Nodes) })
	if err := g.Wait(); err != nil {
		return cl, err
	}
	if err := cl.startGodwit(ctx); err != nil {
		return cl, err
	}
	c.Log.Info("the cluster is ready", "nodes", c.Nodes, "took", time.Since(start).Round(time.Millisecond))
	return cl, nil
}

func (c *Cluster) startAPI(ctx context.Context) error {
	var err error
	if c.api, err = startAPIServer(ctx, c.log, c.Machine, c.dir); err != nil {
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
	if c.api != nil {
		c.api.stop()
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
	return c.In(ctx, hub, append([]string{"ovn-nbctl", "--db=unix:" + nbSocket, "--timeout=30"}, args...)...)
}

// SBCtl runs ovn-sbctl.
func (c *Cluster) SBCtl(ctx context.Context, args ...string) (string, error) {
	return c.In(ctx, hub, append([]string{"ovn-sbctl", "--db=unix:" + sbSocket, "--timeout=30"}, args...)...)
}

// Logs is the end of each program's log in the machine.
func (c *Cluster) Logs(ctx context.Context, lines int) string {
	out, err := c.In(ctx, "", "sh", "-c", fmt.Sprintf("tail -n %d %s", lines, filepath.Join(logDir, "*.log")))
	if err != nil {
		return err.Error()
	}
	return out
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

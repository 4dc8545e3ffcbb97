// Package central is what godwit-controller talks to, without any node: an API server with Godwit's manifests and OVN's two databases with northd, and
// controllers that run on them as processes of their own.
package central

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// Config is where the programs come from and where their logs go.
type Config struct {
	// Controller is a built godwit-controller; it is built from this checkout if it is empty.
	Controller string
	// Logs is a directory for the programs' logs; they are in Dir if it is empty.
	Logs string
	// Dir is where what is built, and the databases, are. Its path must be short: that of a unix socket has at most 107 bytes.
	Dir string
	Log *slog.Logger
}

// Cluster is an API server and an OVN central. Its fields must not be changed.
type Cluster struct {
	// API is an administrator's client, without a limit of requests.
	API client.Client
	// NB and SB are the databases' endpoints.
	NB, SB string
	Northd *Process

	config     Config
	source     string
	kubernetes string
	ovn        *packages.Root
	spawn      spawner
	rest       *rest.Config
	stops      []func()
}

// Start starts the programs. The Cluster must be stopped, also when this fails.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	c := &Cluster{config: config, spawn: newSpawner()}
	c.stops = append(c.stops, c.spawn.close)
	if c.config.Logs == "" {
		c.config.Logs = config.Dir
	}
	if err := c.prepare(ctx); err != nil {
		return c, err
	}
	server := &envtest.Environment{BinaryAssetsDirectory: c.kubernetes, CRDDirectoryPaths: []string{filepath.Join(c.source, "yamls", "crds")}, ErrorIfCRDPathMissing: true}
	c.stops = append(c.stops, func() { _ = server.Stop() })
	var err error
	if c.rest, err = server.Start(); err != nil {
		return c, fmt.Errorf("start an API server: %w", err)
	}
	c.rest.QPS, c.rest.Burst = -1, 0
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return c, err
	}
	if c.API, err = client.New(c.rest, client.Options{Scheme: scheme}); err != nil {
		return c, err
	}
	if err := errors.Join(c.apply(ctx, "install.yaml", "Namespace", "ServiceAccount"), c.apply(ctx, "rbac.yaml")); err != nil {
		return c, err
	}
	return c, c.startOVN(ctx)
}

// prepare finds and builds the programs.
func (c *Cluster) prepare(ctx context.Context) error {
	set, err := binaries.Ensure(ctx, c.config.Log)
	if err != nil {
		return err
	}
	c.kubernetes = set.Kubernetes()
	if c.ovn, err = packages.Ensure(ctx, c.config.Log); err != nil {
		return err
	}
	if c.source, err = source.Dir(); err != nil {
		return err
	}
	if c.config.Controller != "" {
		return nil
	}
	c.config.Controller = filepath.Join(c.config.Dir, "godwit-controller")
	build := exec.CommandContext(ctx, "go", "build", "-o", c.config.Controller, "./cmd/godwit-controller")
	build.Dir = c.source
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the controller: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) startOVN(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(c.config.Dir, name) }
	for name, schema := range map[string]string{"nb": "usr/share/ovn/ovn-nb.ovsschema", "sb": "usr/share/ovn/ovn-sb.ovsschema"} {
		path, err := c.ovn.Path(schema)
		if err != nil {
			return err
		}
		if _, err := c.Command(ctx, "ovsdb-tool", "create", file(name+".db"), path); err != nil {
			return err
		}
		if _, err := c.run(ctx, name, "ovsdb-server", "--remote=punix:"+file(name+".sock"), "--unixctl="+file(name+".ctl"), "-vconsole:warn", file(name+".db")); err != nil {
			return err
		}
		if err := awaitSocket(ctx, file(name+".sock")); err != nil {
			return err
		}
	}
	c.NB, c.SB = "unix:"+file("nb.sock"), "unix:"+file("sb.sock")
	var err error
	c.Northd, err = c.run(ctx, "northd", "ovn-northd", "--ovnnb-db="+c.NB, "--ovnsb-db="+c.SB, "--unixctl="+file("northd.ctl"), "-vconsole:warn")
	return err
}

func (c *Cluster) run(ctx context.Context, log, name string, args ...string) (*Process, error) {
	p, err := c.spawn.start(c.ovn.Command(ctx, name, args...), filepath.Join(c.config.Logs, log+".log"))
	if err == nil {
		c.stops = append(c.stops, p.Stop)
	}
	return p, err
}

// Command runs one of OVN's programs, and returns what it prints.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := c.ovn.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return string(out), nil
}

// Stop ends everything, last started first. It may be called again.
func (c *Cluster) Stop() {
	for _, s := range slices.Backward(c.stops) {
		s()
	}
	c.stops = nil
}

// apply creates the objects of a manifest in yamls/, of the given kinds if any are given.
func (c *Cluster) apply(ctx context.Context, file string, kinds ...string) error {
	text, err := os.ReadFile(filepath.Join(c.source, "yamls", file))
	if err != nil {
		return err
	}
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var u unstructured.Unstructured
		if err := dec.Decode(&u); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("yamls/%s: %w", file, err)
		}
		if len(kinds) > 0 && !slices.Contains(kinds, u.GetKind()) {
			continue
		}
		if err := c.API.Create(ctx, &u); err != nil {
			return fmt.Errorf("yamls/%s: %s %s: %w", file, u.GetKind(), u.GetName(), err)
		}
	}
}

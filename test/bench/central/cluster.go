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
	// Dir is where what is built is, and the directory of each cluster. Its path must be short: that of a unix socket has at most 107 bytes.
	Dir string
	Log *slog.Logger
}

// Programs are what a Cluster runs. Several may be started from them, one after another.
type Programs struct {
	config     Config
	source     string
	kubernetes string
	ovn        *packages.Root
}

// Prepare finds and builds the programs.
func Prepare(ctx context.Context, config Config) (*Programs, error) {
	p := &Programs{config: config}
	if p.config.Logs == "" {
		p.config.Logs = config.Dir
	}
	set, err := binaries.Ensure(ctx, config.Log)
	if err != nil {
		return nil, err
	}
	p.kubernetes = set.Kubernetes()
	if p.ovn, err = packages.Ensure(ctx, config.Log); err != nil {
		return nil, err
	}
	if p.source, err = source.Dir(); err != nil {
		return nil, err
	}
	if config.Controller != "" {
		return p, nil
	}
	p.config.Controller = filepath.Join(config.Dir, "godwit-controller")
	build := exec.CommandContext(ctx, "go", "build", "-o", p.config.Controller, "./cmd/godwit-controller")
	build.Dir = p.source
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the controller: %w: %s", err, out)
	}
	return p, nil
}

// Cluster is an API server and an OVN central. Its fields must not be changed.
type Cluster struct {
	// API is an administrator's client, without a limit of requests; REST is what it was made from.
	API  client.Client
	REST *rest.Config
	// NB and SB are the databases' endpoints.
	NB, SB string
	Northd *Process

	programs *Programs
	dir      string
	spawn    spawner
	stops    []func()
}

// Start starts a cluster. It must be stopped, also when this fails.
func (p *Programs) Start(ctx context.Context) (*Cluster, error) {
	c := &Cluster{programs: p, spawn: newSpawner()}
	c.stops = append(c.stops, c.spawn.close)
	var err error
	if c.dir, err = os.MkdirTemp(p.config.Dir, ""); err != nil {
		return c, err
	}
	c.stops = append(c.stops, func() { _ = os.RemoveAll(c.dir) })
	server := &envtest.Environment{BinaryAssetsDirectory: p.kubernetes, CRDDirectoryPaths: []string{filepath.Join(p.source, "yamls", "crds")}, ErrorIfCRDPathMissing: true}
	c.stops = append(c.stops, func() { _ = server.Stop() })
	if c.REST, err = server.Start(); err != nil {
		return c, fmt.Errorf("start an API server: %w", err)
	}
	c.REST.QPS, c.REST.Burst = -1, 0
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return c, err
	}
	if c.API, err = client.New(c.REST, client.Options{Scheme: scheme}); err != nil {
		return c, err
	}
	if err := errors.Join(c.apply(ctx, "install.yaml", "Namespace", "ServiceAccount"), c.apply(ctx, "rbac.yaml")); err != nil {
		return c, err
	}
	return c, c.startOVN(ctx)
}

func (c *Cluster) startOVN(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	for name, schema := range map[string]string{"nb": "usr/share/ovn/ovn-nb.ovsschema", "sb": "usr/share/ovn/ovn-sb.ovsschema"} {
		path, err := c.programs.ovn.Path(schema)
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
	p, err := c.spawn.start(c.programs.ovn.Command(ctx, name, args...), filepath.Join(c.programs.config.Logs, log+".log"))
	if err == nil {
		c.stops = append(c.stops, p.Stop)
	}
	return p, err
}

// Command runs one of OVN's programs, and returns what it prints.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := c.programs.ovn.Command(ctx, name, args...).CombinedOutput()
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
	text, err := os.ReadFile(filepath.Join(c.programs.source, "yamls", file))
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

package binaries

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/godwit-cni/godwit/test/lab/cache"
	"github.com/godwit-cni/godwit/test/lab/source"
)

const plainLDFlags = "-s -w"

// addon is what some tests want beside Kubernetes, of a module of its own in test/kube.
type addon struct {
	// title is its name to people, module its directory in test/kube.
	title, module string
	// name is the cache's for it.
	name string
	// goPackages are what is built: a program each.
	goPackages []string
}

// dir returns the directory of the programs, which are built unless they are cached.
func (a addon) dir(ctx context.Context, log *slog.Logger) (string, error) {
	top, err := source.Dir()
	if err != nil {
		return "", err
	}
	module := filepath.Join(top, "test", "kube", a.module)
	key, err := key(module, plainLDFlags, a.goPackages)
	if err != nil {
		return "", err
	}
	dir, err := cache.Entry(ctx, a.name, key, func(ctx context.Context, dir string) error {
		start := time.Now()
		log.Info("building " + a.title + ": some minutes, the first time")
		if err := (source.Build{Dir: module, Out: dir, LDFlags: plainLDFlags, Packages: a.goPackages}).Run(ctx, log); err != nil {
			return err
		}
		log.Info(a.title+" is built", "took", time.Since(start).Round(time.Second))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", a.title, err)
	}
	return dir, nil
}

// program returns the path of the one program that is built.
func (a addon) program(ctx context.Context, log *slog.Logger) (string, error) {
	dir, err := a.dir(ctx, log)
	return filepath.Join(dir, a.name), err
}

// CoreDNS returns the path of the program, which has the plugins that CoreDNS' own releases have: three minutes of processor time to build.
func CoreDNS(ctx context.Context, log *slog.Logger) (string, error) {
	return addon{title: "CoreDNS", module: "dns", goPackages: []string{"github.com/coredns/coredns"}, name: "coredns"}.program(ctx, log)
}

// Multus returns the path of Multus' thin plugin: a minute or two of processor time to build.
func Multus(ctx context.Context, log *slog.Logger) (string, error) {
	return addon{title: "Multus", module: "multus", goPackages: []string{"gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus"}, name: "multus"}.program(ctx, log)
}

// Containerd returns the directory of containerd, its shim for runc and ctr: some minutes of processor time to build.
func Containerd(ctx context.Context, log *slog.Logger) (string, error) {
	const commands = "github.com/containerd/containerd/v2/cmd/"
	return addon{title: "containerd", module: "containerd", goPackages: []string{commands + "containerd", commands + "containerd-shim-runc-v2", commands + "ctr"}, name: "containerd"}.dir(ctx, log)
}

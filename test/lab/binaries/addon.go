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

// addon is a program that some tests want beside Kubernetes, of a module of its own in test/kube.
type addon struct {
	// title is its name to people, module its directory in test/kube.
	title, module string
	// goPackage is what is built, program what comes of it.
	goPackage, program string
}

// path returns the path of the program, which is built unless it is cached.
func (a addon) path(ctx context.Context, log *slog.Logger) (string, error) {
	top, err := source.Dir()
	if err != nil {
		return "", err
	}
	module := filepath.Join(top, "test", "kube", a.module)
	key, err := key(module, plainLDFlags, a.goPackage)
	if err != nil {
		return "", err
	}
	dir, err := cache.Entry(ctx, a.program, key, func(ctx context.Context, dir string) error {
		start := time.Now()
		log.Info("building " + a.title + ": some minutes, the first time")
		if err := (source.Build{Dir: module, Out: dir, LDFlags: plainLDFlags, Packages: []string{a.goPackage}}).Run(ctx, log); err != nil {
			return err
		}
		log.Info(a.title+" is built", "took", time.Since(start).Round(time.Second))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", a.title, err)
	}
	return filepath.Join(dir, a.program), nil
}

// CoreDNS returns the path of the program, which has the plugins that CoreDNS' own releases have: three minutes of processor time to build.
func CoreDNS(ctx context.Context, log *slog.Logger) (string, error) {
	return addon{title: "CoreDNS", module: "dns", goPackage: "github.com/coredns/coredns", program: "coredns"}.path(ctx, log)
}

// Multus returns the path of Multus' thin plugin: a minute or two of processor time to build.
func Multus(ctx context.Context, log *slog.Logger) (string, error) {
	return addon{title: "Multus", module: "multus", goPackage: "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus", program: "multus"}.path(ctx, log)
}

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

const (
	corednsPackage = "github.com/coredns/coredns"
	corednsProgram = "coredns"
	plainLDFlags   = "-s -w"
)

// CoreDNS returns the path of the program, which has the plugins that CoreDNS' own releases have. It is built from test/kube/dns unless it is cached: three minutes of
// processor time.
func CoreDNS(ctx context.Context, log *slog.Logger) (string, error) {
	top, err := source.Dir()
	if err != nil {
		return "", err
	}
	module := filepath.Join(top, "test", "kube", "dns")
	key, err := key(module, plainLDFlags, corednsPackage)
	if err != nil {
		return "", err
	}
	dir, err := cache.Entry(ctx, "coredns", key, func(ctx context.Context, dir string) error {
		start := time.Now()
		log.Info("building CoreDNS: some minutes, the first time")
		if err := (source.Build{Dir: module, Out: dir, LDFlags: plainLDFlags, Packages: []string{corednsPackage}}).Run(ctx, log); err != nil {
			return err
		}
		log.Info("CoreDNS is built", "took", time.Since(start).Round(time.Second))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("build CoreDNS: %w", err)
	}
	return filepath.Join(dir, corednsProgram), nil
}

// Package binaries builds the Kubernetes, etcd and CNI plugin programs that the lab runs, from the pinned module in test/kube.
package binaries

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/lab/cache"
	"github.com/godwit-cni/godwit/test/lab/source"
)

const (
	etcd       = "go.etcd.io/etcd/server/v3"
	kubernetes = "k8s.io/kubernetes"
	plugins    = "github.com/containernetworking/plugins/plugins"
)

var (
	kubePackages = []string{
		etcd,
		kubernetes + "/cmd/kube-apiserver", kubernetes + "/cmd/kube-controller-manager", kubernetes + "/cmd/kube-scheduler",
		kubernetes + "/cmd/kubelet", kubernetes + "/cmd/kubectl",
	}
	pluginPackages = []string{
		plugins + "/meta/portmap", plugins + "/meta/bandwidth", plugins + "/main/loopback", plugins + "/main/bridge", plugins + "/ipam/host-local",
	}
)

// Set is a directory of built programs.
type Set struct{ dir string }

// Ensure returns the programs, building those that are not cached. A cold build takes about ten minutes on two cores and 3 GB of memory.
func Ensure(ctx context.Context, log *slog.Logger) (*Set, error) {
	top, err := source.Dir()
	if err != nil {
		return nil, err
	}
	module := filepath.Join(top, "test", "kube")
	key, err := key(module, ldflags("v0.0.0"), kubePackages, pluginPackages)
	if err != nil {
		return nil, err
	}
	dir, err := cache.Entry(ctx, "binaries", key, func(ctx context.Context, dir string) error { return build(ctx, log, module, dir) })
	if err != nil {
		return nil, fmt.Errorf("build the Kubernetes programs: %w", err)
	}
	return &Set{dir: dir}, nil
}

// Kubernetes is the directory with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl.
func (s *Set) Kubernetes() string { return filepath.Join(s.dir, "kube") }

// CNI is the directory with the reference CNI plugins.
func (s *Set) CNI() string { return filepath.Join(s.dir, "cni") }

// Path is the path of one of the programs in Kubernetes.
func (s *Set) Path(name string) string { return filepath.Join(s.Kubernetes(), name) }

func build(ctx context.Context, log *slog.Logger, module, dir string) error {
	start := time.Now()
	version, err := kubernetesVersion(ctx, module)
	if err != nil {
		return err
	}
	log.Info("building etcd, Kubernetes and the CNI plugins: 2,900 packages and ten minutes on two cores, the first time", "kubernetes", version)
	kube, cni := filepath.Join(dir, "kube"), filepath.Join(dir, "cni")
	for _, b := range []source.Build{
		{Dir: module, Out: kube, LDFlags: ldflags(version), Packages: kubePackages},
		{Dir: module, Out: cni, LDFlags: plainLDFlags, Packages: pluginPackages},
	} {
		if err := os.Mkdir(b.Out, 0o755); err != nil {
			return fmt.Errorf("make a directory for programs: %w", err)
		}
		if err := b.Run(ctx, log); err != nil {
			return err
		}
	}
	// go build names a program for its import path's last element that is no version.
	if err := os.Rename(filepath.Join(kube, "server"), filepath.Join(kube, "etcd")); err != nil {
		return fmt.Errorf("name etcd: %w", err)
	}
	log.Info("Kubernetes programs are built", "took", time.Since(start).Round(time.Second))
	return nil
}

// kubernetesVersion reads the version that test/kube pins. Without the stamp the programs call themselves v0.0.0, which kubelet's and the
// API server's skew checks refuse.
func kubernetesVersion(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", kubernetes)
	cmd.Dir = module
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		var said string
		if errors.As(err, &exit) {
			said = strings.TrimSpace(string(exit.Stderr))
		}
		return "", fmt.Errorf("read the version of %s in %s: %w: %s%s", kubernetes, module, err, said, source.Advice(said))
	}
	return strings.TrimSpace(string(out)), nil
}

// ldflags stamp the version as Kubernetes' own build does. They are part of Go's cache key: change them and everything is linked again.
func ldflags(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := "-s -w"
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean", p, version, major, minor)
	}
	return flags
}

// key is a hash of all that a module's programs are built from: its versions, and how they are built.
func key(module string, how ...any) (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, append([]any{runtime.GOOS, runtime.GOARCH}, how...)...)
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(module, f))
		if err != nil {
			return "", fmt.Errorf("read the pinned versions: %w", err)
		}
		_, _ = h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

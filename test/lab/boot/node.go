package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = "/etc/containerd/config.toml"
	kubeletConfig    = "/etc/kubernetes/kubelet.yaml"
	// NodePath is the PATH in a node.
	NodePath = innerKubernetes + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/cni/bin"
)

func runNode(ctx context.Context, log *slog.Logger, spec *Spec) error {
	if err := enterRoot(spec); err != nil {
		return err
	}
	if err := errors.Join(os.Setenv("PATH", NodePath), nodeSysctls()); err != nil {
		return err
	}
	if err := errors.Join(copyPlugins(), writeConfigs(spec)); err != nil {
		return err
	}
	root, err := packages.Open("/")
	if err != nil {
		return err
	}
	sup := supervise.New(log, innerLogs, innerDir+"/status.json")
	connected := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	var installer Installer = Processes{Packages: root}
	if spec.OVNPods {
		installer = Pods{}
	}
	net := newNetworker(log, spec)
	net.replaced[TunLink] = func(ctx context.Context) error { return installer.Replug(ctx, spec, sup.Command) }
	g.Go(func() error { return net.run(ctx, connected) })
	services := append(installer.Node(spec, sup.Command), kubernetesNode(spec, sup.Command, connected)...)
	g.Go(func() error { return sup.Run(ctx, services) })
	return g.Wait()
}

// nodeSysctls are the namespace's own: a node forwards for its pods.
func nodeSysctls() error {
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // absent: a kernel without the family
			return fmt.Errorf("let the node forward: %w", err)
		}
	}
	return nil
}

// kubernetesNode is containerd and kubelet. The kubelet waits for the node's address and the API server, or it would back off for seconds.
func kubernetesNode(spec *Spec, run Command, connected <-chan struct{}) []supervise.Service {
	return []supervise.Service{
		{
			Name: "containerd", Ready: unixReady(containerdSocket), Argv: []string{"containerd", "--config", containerdConfig},
			After: func(ctx context.Context) error { return importImages(ctx, run) },
		},
		{
			Name: "kubelet", Needs: []string{"containerd"}, Ready: httpReady("http://127.0.0.1:10248/healthz"),
			Argv: []string{
				"kubelet", "--config=" + kubeletConfig, "--kubeconfig=" + filepath.Join(innerDir, "secrets", NodeConfig),
				"--hostname-override=" + spec.Name, "--node-ip=" + joinAddrs(spec.Mgmt),
			},
			Before: func(ctx context.Context) error {
				select {
				case <-connected:
				case <-ctx.Done():
					return ctx.Err()
				}
				return awaitTCP(ctx, spec.apiAddress())
			},
		},
	}
}

func joinAddrs(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.Addr().String())
	}
	return strings.Join(s, ",")
}

// awaitTCP returns when the address accepts connections.
func awaitTCP(ctx context.Context, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for {
		d := net.Dialer{Timeout: apiPoll * 10}
		conn, err := d.DialContext(ctx, "tcp", addr.String())
		if err == nil {
			return conn.Close()
		}
		if err := pause(ctx, apiPoll); err != nil {
			return fmt.Errorf("wait for the API server at %s: %w", addr, err)
		}
	}
}

// importImages gives containerd the images that it does not have, or has in another version.
func importImages(ctx context.Context, run Command) error {
	archives, err := Unimported(innerImages, "/")
	if err != nil {
		return err
	}
	for _, a := range archives {
		if err := run(ctx, "images", ImportArgv(a)...); err != nil {
			return fmt.Errorf("import image %s: %w", a, err)
		}
		if err := MarkImported(innerImages, "/", a); err != nil {
			return err
		}
	}
	return nil
}

// copyPlugins puts the reference plugins where chained CNI configurations look for them, unless something is there already.
func copyPlugins() error {
	entries, err := os.ReadDir(innerCNI)
	if err != nil {
		return fmt.Errorf("list the CNI plugins: %w", err)
	}
	for _, e := range entries {
		to := filepath.Join("/opt/cni/bin", e.Name())
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := copyFile(filepath.Join(innerCNI, e.Name()), to); err != nil {
			return fmt.Errorf("install CNI plugin %s: %w", e.Name(), err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	tmp := to + ".new"
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

package boot

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/supervise"
)

// etcd listens on the hub's loopback, which nothing else shares.
const (
	etcdClient = "http://127.0.0.1:2379"
	etcdPeer   = "http://127.0.0.1:2380"
)

func runHub(ctx context.Context, log *slog.Logger, spec *Spec) error {
	if err := mountProc(); err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	root, err := usePackages(spec)
	if err != nil {
		return err
	}
	var installer Installer = Processes{Packages: root}
	if spec.OVNPods {
		installer = Pods{}
	}
	sup := supervise.New(log, spec.Logs, spec.StatusFile())
	services := append(append(controlPlane(spec), standIn(spec)), installer.Central(spec, sup.Command)...)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return forward(ctx, log) })
	g.Go(func() error { return sup.Run(ctx, services) })
	return g.Wait()
}

// controlPlane is etcd and Kubernetes.
func controlPlane(spec *Spec) []supervise.Service {
	program := func(name string) string { return filepath.Join(spec.Kubernetes, name) }
	secret := func(name string) string { return filepath.Join(spec.Secrets(), name) }
	return []supervise.Service{
		{
			Name: "etcd", Ready: httpReady(etcdClient + "/health"),
			Argv: []string{
				program("etcd"), "--name=lab", "--data-dir=" + filepath.Join(spec.Dir, "etcd"),
				"--listen-client-urls=" + etcdClient, "--advertise-client-urls=" + etcdClient, "--listen-peer-urls=" + etcdPeer,
				"--initial-advertise-peer-urls=" + etcdPeer, "--initial-cluster=lab=" + etcdPeer,
				"--unsafe-no-fsync", // a lab's data need not survive the loss of power
			},
		},
		{
			Name: "kube-apiserver", Needs: []string{"etcd"}, Ready: httpReady(fmt.Sprintf("https://127.0.0.1:%d/readyz", APIPort)),
			Argv: append([]string{program("kube-apiserver")}, apiFlags(spec)...),
		},
		{
			Name: "kube-controller-manager", Needs: []string{"kube-apiserver"}, Ready: httpReady("https://127.0.0.1:10257/healthz"),
			Argv: []string{
				program("kube-controller-manager"), "--kubeconfig=" + secret(ManagerConfig), "--bind-address=127.0.0.1", "--leader-elect=false",
				"--service-account-private-key-file=" + secret(AccountKey), "--root-ca-file=" + secret(CACert), "--use-service-account-credentials=true",
				"--allocate-node-cidrs=false", "--authentication-skip-lookup=true", "--node-monitor-grace-period=20s",
				"--kube-api-qps=100", "--kube-api-burst=200",
			},
		},
		{
			Name: "kube-scheduler", Needs: []string{"kube-apiserver"}, Ready: httpReady("https://127.0.0.1:10259/healthz"),
			Argv: []string{
				program("kube-scheduler"), "--kubeconfig=" + secret(SchedConfig), "--bind-address=127.0.0.1", "--leader-elect=false",
				"--authentication-skip-lookup=true", "--kube-api-qps=100", "--kube-api-burst=200",
			},
		},
	}
}

func apiFlags(spec *Spec) []string {
	secret := func(name string) string { return filepath.Join(spec.Secrets(), name) }
	return []string{
		"--etcd-servers=" + etcdClient, fmt.Sprintf("--secure-port=%d", APIPort), "--bind-address=" + anyAddress(), "--advertise-address=" + spec.HubIPs[0].String(),
		"--tls-cert-file=" + secret(ServerCert), "--tls-private-key-file=" + secret(ServerKey),
		"--kubelet-client-certificate=" + secret(KubeletCert), "--kubelet-client-key=" + secret(KubeletKey),
		"--service-cluster-ip-range=" + joinPrefixes(spec.ServiceCIDRs), "--token-auth-file=" + secret(Tokens), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + secret(AccountKey),
		"--service-account-signing-key-file=" + secret(AccountKey), "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP,Hostname", "--profiling=false",
	}
}

// anyAddress listens on both families where the kernel has both.
func anyAddress() string {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return "0.0.0.0"
	}
	return "::"
}

func joinPrefixes(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// httpReady asks a health endpoint of a service on this machine. Its certificate is not checked: the connection cannot leave the machine.
func httpReady(url string) func(context.Context) error {
	client := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, //nolint:gosec // see above
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", url, resp.Status)
		}
		return nil
	}
}

// forward carries connections from the inherited listener, which is the host's, to the API server, which only this namespace reaches.
func forward(ctx context.Context, log *slog.Logger) error {
	f := os.NewFile(ListenerFD, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("use the inherited listener: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	_ = f.Close() // duplicated by FileListener
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept connections to the API server: %w", err)
		}
		go func() {
			if err := carry(ctx, conn); err != nil {
				log.Debug("a forwarded connection ended", "err", err)
			}
		}()
	}
}

func carry(ctx context.Context, client net.Conn) error {
	defer func() { _ = client.Close() }()
	d := net.Dialer{Timeout: 5 * time.Second}
	server, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", APIPort))
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	var g errgroup.Group
	for _, c := range [][2]net.Conn{{client, server}, {server, client}} {
		g.Go(func() error {
			_, err := io.Copy(c[0], c[1])
			// Half-closed connections matter to kubectl exec and port-forward.
			if tcp, ok := c[0].(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return err
		})
	}
	return g.Wait()
}

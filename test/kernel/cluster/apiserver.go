package cluster

import (
	"context"
	"encoding/csv"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/godwit-cni/godwit/test/kernel/vm"
	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/pki"
)

// ServiceCIDRs are the ranges of ClusterIPs, of IPv4 and of IPv6.
const ServiceCIDRs = "10.96.0.0/16,fd00:10:96::/112"

const (
	apiPort = 6443
	// The namespace beside the machine has a loopback of its own.
	etcdClient = "http://127.0.0.1:2379"
	etcdPeer   = "http://127.0.0.1:2380"
)

// apiServer is etcd and kube-apiserver.
type apiServer struct {
	dir       string
	ca, token string
	processes []*process
}

func (c *Cluster) startAPIServer(ctx context.Context) (*apiServer, error) {
	set, err := binaries.Ensure(ctx, c.log)
	if err != nil {
		return nil, err
	}
	s := &apiServer{dir: c.dir, token: pki.Token()}
	if err := s.credentials(); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{s.etcd(set), s.kubeAPIServer(set)} {
		p, err := c.beside(exec.CommandContext(ctx, argv[0], argv[1:]...))
		if err != nil {
			return nil, err
		}
		s.processes = append(s.processes, p)
	}
	return s, nil
}

func (s *apiServer) file(name string) string { return filepath.Join(s.dir, name) }

func (s *apiServer) credentials() error {
	now := time.Now()
	ca, err := pki.NewAuthority(now)
	if err != nil {
		return err
	}
	s.ca = string(ca.Certificate())
	cert, key, err := ca.Server(now, "kube-apiserver", []string{"localhost"}, []netip.Addr{vm.Outside})
	if err != nil {
		return err
	}
	account, err := pki.SigningKey()
	if err != nil {
		return err
	}
	var tokens strings.Builder
	w := csv.NewWriter(&tokens)
	if err := w.Write([]string{s.token, "admin", "admin", "system:masters"}); err != nil {
		return fmt.Errorf("write the API server's users: %w", err)
	}
	w.Flush()
	for name, content := range map[string]string{"cert": string(cert), "key": string(key), "account": string(account), "tokens": tokens.String()} {
		if err := pki.WriteSecret(s.file(name), []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

func (s *apiServer) etcd(set *binaries.Set) []string {
	return []string{
		set.Path("etcd"), "--name=test", "--data-dir=" + s.file("etcd"), "--listen-client-urls=" + etcdClient, "--advertise-client-urls=" + etcdClient,
		"--listen-peer-urls=" + etcdPeer, "--initial-advertise-peer-urls=" + etcdPeer, "--initial-cluster=test=" + etcdPeer, "--unsafe-no-fsync",
	}
}

func (s *apiServer) kubeAPIServer(set *binaries.Set) []string {
	return []string{
		set.Path("kube-apiserver"), "--etcd-servers=" + etcdClient, fmt.Sprintf("--secure-port=%d", apiPort), "--bind-address=0.0.0.0",
		"--advertise-address=" + vm.Outside.String(), "--tls-cert-file=" + s.file("cert"), "--tls-private-key-file=" + s.file("key"),
		"--token-auth-file=" + s.file("tokens"), "--authorization-mode=RBAC", "--service-cluster-ip-range=" + ServiceCIDRs,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + s.file("account"),
		"--service-account-signing-key-file=" + s.file("account"),
		"--disable-admission-plugins=ServiceAccount", // nobody makes the accounts that it would give to pods
		"--profiling=false",
	}
}

// config is the administrator's.
func (s *apiServer) config() *rest.Config {
	return &rest.Config{
		Host: fmt.Sprintf("https://%s", netip.AddrPortFrom(vm.Outside, apiPort)), BearerToken: s.token, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(s.ca)},
		QPS: -1,
	}
}

// kubeconfig is for who acts as a service account; on a node, if that is not empty.
func (s *apiServer) kubeconfig(account types.NamespacedName, node string) ([]byte, error) {
	user := &clientcmdapi.AuthInfo{
		Token: s.token, Impersonate: fmt.Sprintf("system:serviceaccount:%s:%s", account.Namespace, account.Name),
		ImpersonateGroups: []string{"system:serviceaccounts", "system:authenticated"},
	}
	if node != "" {
		user.ImpersonateUserExtra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	const name = "test"
	b, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:  map[string]*clientcmdapi.Cluster{name: {Server: s.config().Host, CertificateAuthorityData: []byte(s.ca)}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{name: user},
		Contexts:  map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}}, CurrentContext: name,
	})
	if err != nil {
		return nil, fmt.Errorf("make a kubeconfig: %w", err)
	}
	return b, nil
}

// await returns when the API server is ready.
func (s *apiServer) await(ctx context.Context, config *rest.Config) error {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	return awaitProcesses(ctx, "start the API server", s.processes, func(ctx context.Context) error {
		_, err := clients.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

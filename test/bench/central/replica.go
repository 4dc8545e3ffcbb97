package central

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Identity is who the controllers are, as in a cluster: they have the permissions of yamls/rbac.yaml and are under its admission policies.
func Identity() rest.ImpersonationConfig {
	return rest.ImpersonationConfig{UserName: "system:serviceaccount:godwit-system:godwit-controller", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
}

// Join and default networks of the controllers.
const (
	DefaultCIDRs = "10.240.0.0/12,fd00:10:240::/64"
	JoinCIDRs    = "100.64.0.0/16,fd98::/64"
)

// Replica is a running godwit-controller.
type Replica struct {
	*Process
	// Started is when its process was started.
	Started time.Time

	name            string
	metrics, health string // addresses
}

// Controller starts a controller as a process of its own, as in a cluster: with leader election, and limited to its service account. It is given nb as the northbound
// database's endpoint.
func (c *Cluster) Controller(ctx context.Context, name, nb string) (*Replica, error) {
	kubeconfig := filepath.Join(c.dir, "kubeconfig")
	if err := c.writeKubeconfig(kubeconfig); err != nil {
		return nil, err
	}
	r := &Replica{name: name}
	for _, addr := range []*string{&r.metrics, &r.health} {
		port, err := freePort(ctx)
		if err != nil {
			return nil, err
		}
		*addr = port
	}
	cmd := exec.CommandContext(ctx, c.programs.config.Controller, "--kubeconfig="+kubeconfig, "--nb-remote="+nb, "--sb-remote="+c.SB,
		"--default-cidrs="+DefaultCIDRs, "--join-cidrs="+JoinCIDRs, "--metrics-address="+r.metrics, "--health-address="+r.health)
	var err error
	r.Started = time.Now()
	if r.Process, err = c.spawn.start(cmd, filepath.Join(c.programs.config.Logs, name+".log")); err != nil {
		return nil, err
	}
	c.stops = append(c.stops, r.Stop)
	return r, nil
}

func (c *Cluster) writeKubeconfig(path string) error {
	conf := clientcmdapi.NewConfig()
	conf.Clusters["c"] = &clientcmdapi.Cluster{Server: c.REST.Host, CertificateAuthorityData: c.REST.CAData}
	if !strings.Contains(c.REST.Host, "://") {
		conf.Clusters["c"].Server = "https://" + c.REST.Host
	}
	who := Identity()
	conf.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: c.REST.CertData, ClientKeyData: c.REST.KeyData,
		Impersonate: who.UserName, ImpersonateGroups: who.Groups}
	conf.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	conf.CurrentContext = "x"
	return clientcmd.WriteToFile(*conf, path)
}

func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// AwaitReady returns when /readyz says yes.
func (r *Replica) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*startTimeout)
	defer cancel()
	return Poll(ctx, r.name+" is ready", func() (bool, error) {
		if err := r.Running(); err != nil {
			return false, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.health+"/readyz", nil)
		if err != nil {
			return false, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
}

// Leader is the holder of the controllers' lease, empty when there is none.
func (c *Cluster) Leader(ctx context.Context) (string, error) {
	var l coordinationv1.Lease
	err := c.API.Get(ctx, types.NamespacedName{Namespace: "godwit-system", Name: "godwit-controller"}, &l)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read the lease: %w", err)
	}
	if l.Spec.HolderIdentity == nil {
		return "", nil
	}
	return *l.Spec.HolderIdentity, nil
}

// AwaitLeader returns when somebody other than before holds the lease, and says who.
func (c *Cluster) AwaitLeader(ctx context.Context, before string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	now := ""
	err := Poll(ctx, "another controller leads", func() (ok bool, err error) {
		now, err = c.Leader(ctx)
		return now != "" && now != before, err
	})
	return now, err
}

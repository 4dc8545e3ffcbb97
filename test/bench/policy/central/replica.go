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
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// controllerUser is who the controller is in a cluster: it has the permissions of yamls/rbac.yaml and is under its admission policies.
const controllerUser = "system:serviceaccount:godwit-system:godwit-controller"

func controllerGroups() []string { return []string{"system:serviceaccounts", "system:authenticated"} }

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

	name   string
	health string // address
}

// Controller starts a controller as a process of its own, as in a cluster: with leader election, and limited to its service account. It is given nb as the northbound
// database's endpoint.
func (c *Cluster) Controller(ctx context.Context, name, nb string) (*Replica, error) {
	kubeconfig := filepath.Join(c.config.Dir, "kubeconfig")
	if err := c.writeKubeconfig(kubeconfig); err != nil {
		return nil, err
	}
	r := &Replica{name: name}
	var err error
	if r.health, err = freePort(ctx); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, c.config.Controller, "--kubeconfig="+kubeconfig, "--nb-remote="+nb, "--sb-remote="+c.SB,
		"--default-cidrs="+DefaultCIDRs, "--join-cidrs="+JoinCIDRs, "--metrics-address=0", "--health-address="+r.health)
	r.Started = time.Now()
	if r.Process, err = c.spawn.start(cmd, filepath.Join(c.config.Logs, name+".log")); err != nil {
		return nil, err
	}
	c.stops = append(c.stops, r.Stop)
	return r, nil
}

func (c *Cluster) writeKubeconfig(path string) error {
	conf := clientcmdapi.NewConfig()
	conf.Clusters["c"] = &clientcmdapi.Cluster{Server: c.rest.Host, CertificateAuthorityData: c.rest.CAData}
	if !strings.Contains(c.rest.Host, "://") {
		conf.Clusters["c"].Server = "https://" + c.rest.Host
	}
	conf.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: c.rest.CertData, ClientKeyData: c.rest.KeyData,
		Impersonate: controllerUser, ImpersonateGroups: controllerGroups()}
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

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
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

// replica is a running godwit-controller.
type replica struct {
	*process
	name            string
	started         time.Time
	metrics, health string // addresses
}

// startReplica starts a controller as a process of its own, as in a cluster: with leader election, and limited to its service account.
func (c *cluster) startReplica(ctx context.Context, name string) (*replica, error) {
	kubeconfig := filepath.Join(c.dir, "kubeconfig")
	if err := c.writeKubeconfig(kubeconfig); err != nil {
		return nil, err
	}
	r := &replica{name: name}
	for _, addr := range []*string{&r.metrics, &r.health} {
		port, err := freePort(ctx)
		if err != nil {
			return nil, err
		}
		*addr = port
	}
	cmd := exec.CommandContext(ctx, c.programs.controller, "--kubeconfig="+kubeconfig, "--nb-remote="+c.nb, "--sb-remote="+c.sb,
		"--default-cidrs=10.240.0.0/12,fd00:10:240::/64", "--join-cidrs=100.64.0.0/16,fd98::/64", "--metrics-address="+r.metrics, "--health-address="+r.health)
	var err error
	r.started = time.Now()
	if r.process, err = c.programs.spawn.start(cmd, filepath.Join(c.programs.logs, name+".log")); err != nil {
		return nil, err
	}
	c.stops = append(c.stops, r.stop)
	return r, nil
}

func (c *cluster) writeKubeconfig(path string) error {
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

// awaitReady returns when /readyz says yes.
func (r *replica) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return poll(ctx, r.name+" is ready", func() (bool, error) {
		select {
		case <-r.ended:
			return false, fmt.Errorf("it has ended: see %s", r.log)
		default:
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

// metric sums a metric of the controller's over its labels.
func (r *replica) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read the metrics of %s: %w", r.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	sum := 0.0
	s := bufio.NewScanner(resp.Body)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if v, _, ok := sample(s.Text(), name); ok {
			sum += v
		}
	}
	return sum, s.Err()
}

// sample reads a line of the Prometheus text format if it is one of the metric.
func sample(line, name string) (value float64, labels string, ok bool) {
	rest, found := strings.CutPrefix(line, name)
	if !found || rest == "" || rest[0] != ' ' && rest[0] != '{' {
		return 0, "", false
	}
	at := strings.LastIndexByte(rest, ' ')
	value, err := strconv.ParseFloat(rest[at+1:], 64)
	return value, rest[:at], err == nil
}

// writes counts by resource what was written to the API server by others than the bench itself and the API server: that is, by the controller.
func (c *cluster) writes(ctx context.Context) (map[string]float64, error) {
	cl, err := clientFor(c.rest)
	if err != nil {
		return nil, err
	}
	text, err := cl.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		v, labels, ok := sample(strings.TrimSuffix(line, "\n"), "apiserver_request_total")
		if !ok {
			continue
		}
		verb, resource := label(labels, "verb"), label(labels, "resource")
		switch {
		case verb != "POST" && verb != "PUT" && verb != "PATCH" && verb != "APPLY", resource == "":
		case verb == "POST" && (resource == "pods" || resource == "nodes" || resource == "namespaces"): // the bench
		default:
			out[resource] += v
		}
	}
	return out, nil
}

func label(labels, name string) string {
	_, rest, _ := strings.Cut(labels, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// leader is the lease's holder, empty when there is none.
func (c *cluster) leader(ctx context.Context) (string, error) {
	var l coordinationv1.Lease
	err := c.api.Get(ctx, types.NamespacedName{Namespace: "godwit-system", Name: "godwit-controller"}, &l)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read the lease: %w", err)
	}
	if l.Spec.HolderIdentity == nil {
		return "", nil
	}
	return *l.Spec.HolderIdentity, nil
}

// awaitLeader returns when somebody other than before holds the lease.
func (c *cluster) awaitLeader(ctx context.Context, before string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	now := ""
	err := poll(ctx, "another controller leads", func() (ok bool, err error) {
		now, err = c.leader(ctx)
		return now != "" && now != before, err
	})
	return now, err
}

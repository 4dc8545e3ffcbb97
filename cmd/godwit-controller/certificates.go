package main

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/issuer"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// tlsOptions say where the certificates for OVN's databases come from.
type tlsOptions struct {
	dir    string
	issuer bool
	// hosts are the servers' names and addresses beside those of the remotes.
	hosts []string
	// sbGate is the southbound database's gate where nodes' remote is another.
	sbGate []string
	// agent is the ServiceAccount of nodes' agents.
	agent string
	// plain: no remote is reached by TLS. What is issued is then for nodes' agents, among themselves.
	plain bool
}

// serve runs the controller, and the issuer beside it if it is wanted.
func serve(ctx context.Context, c controller.Config, t tlsOptions, api *rest.Config) error {
	t.plain = !slices.ContainsFunc(slices.Concat(c.NBEndpoints, c.SBEndpoints, t.sbGate), func(r string) bool { return strings.HasPrefix(r, "ssl:") })
	t.hosts = append(t.remoteHosts(c.NBEndpoints, c.SBEndpoints, t.sbGate), t.hosts...)
	if len(t.sbGate) != 0 {
		c.SBEndpoints = t.sbGate
	}
	switch {
	case t.dir != "" && t.issuer:
		return errors.New("--ovn-tls-dir and --ovn-issuer: certificates come from one of them, leave the other out")
	case t.dir != "":
		c.TLS = pki.Dir(os.ReadFile, t.dir)
	case t.issuer:
		return serveBoth(ctx, c, t, api)
	}
	if err := c.Validate(); err != nil {
		return err
	}
	return controller.Run(ctx, c, api)
}

func serveBoth(ctx context.Context, c controller.Config, t tlsOptions, api *rest.Config) error {
	g, ctx := errgroup.WithContext(ctx)
	made, err := issuer.New(issuer.Config{
		Namespace: c.Namespace, AgentUser: "system:serviceaccount:" + c.Namespace + ":" + t.agent, Hosts: t.hosts, Registerer: c.Registerer, Logger: c.Logger,
	}, api)
	if err != nil {
		return err
	}
	if !t.plain {
		c.TLS, c.Issuing = made.AdminFiles(ctx), true
	}
	if err := c.Validate(); err != nil {
		return err
	}
	g.Go(func() error { return made.Run(ctx) })
	g.Go(func() error { return controller.Run(ctx, c, api) })
	return g.Wait()
}

// remoteHosts are the names and addresses of the databases' servers, each once.
func (t tlsOptions) remoteHosts(remotes ...[]string) []string {
	protocol := "ssl:"
	if t.plain {
		protocol = "tcp:"
	}
	var out []string
	seen := map[string]bool{}
	for _, r := range slices.Concat(remotes...) {
		host, _, err := net.SplitHostPort(strings.TrimPrefix(r, protocol))
		if err == nil && strings.HasPrefix(r, protocol) && !seen[host] {
			seen[host] = true
			out = append(out, host)
		}
	}
	return out
}

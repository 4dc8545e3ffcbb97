package main

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/godwit-cni/godwit/pkg/controller"
)

func TestRemotesAndCertificatesBelongTogether(t *testing.T) {
	for _, c := range []struct {
		name   string
		nb, sb string
		tls    tlsOptions
		want   string
	}{
		{"TLS without certificates", "ssl:ovn:6641", "tcp:ovn:6642", tlsOptions{}, `--nb-remote: "ssl:ovn:6641" is reached by TLS, which needs certificates: --ovn-tls-dir DIR, or --ovn-issuer`},
		{"certificates without TLS", "ssl:ovn:6641", "tcp:ovn:6642", tlsOptions{dir: "/tls"}, `--sb-remote: "tcp:ovn:6642" would be reached without TLS`},
		{"an issuer without servers", "unix:/nb", "unix:/sb", tlsOptions{issuer: true, agent: "godwit-agent"}, "no name or address of the databases' servers"},
		{"an issuer with one remote by TLS", "ssl:ovn:6641", "tcp:ovn:6642", tlsOptions{issuer: true, agent: "godwit-agent"}, `"tcp:ovn:6642" would be reached without TLS`},
		{"two sources", "ssl:ovn:6641", "ssl:ovn:6642", tlsOptions{dir: "/tls", issuer: true}, "leave the other out"},
		{"no files", "ssl:ovn:6641", "ssl:ovn:6642", tlsOptions{dir: "/nowhere"}, "certificate authority /nowhere/ca.crt"},
		{"a gate without TLS", "ssl:ovn:6641", "ssl:ovn:6642", tlsOptions{dir: "/tls", sbGate: []string{"tcp:ovn:6643"}}, `"tcp:ovn:6643" would be reached without TLS`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := controller.Defaults()
			cfg.NBEndpoints, cfg.SBEndpoints = []string{c.nb}, []string{c.sb}
			cfg.HealthAddress, cfg.MetricsAddress = "0", "0"
			cfg.Registerer, cfg.Logger = prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil))
			err := serve(t.Context(), cfg, c.tls, &rest.Config{Host: "127.0.0.1:1"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nwant it to say %s", err, c.want)
			}
		})
	}
}

func TestRemoteHosts(t *testing.T) {
	remotes := [][]string{{"ssl:ovn-0:6641", "ssl:[2001:db8::1]:6641"}, {"ssl:ovn-0:6642", "tcp:other:6642"}, nil}
	if got, want := (tlsOptions{}).remoteHosts(remotes...), []string{"ovn-0", "2001:db8::1"}; !slices.Equal(got, want) {
		t.Errorf("hosts %v, want %v", got, want)
	}
	if got, want := (tlsOptions{plain: true}).remoteHosts(remotes...), []string{"other"}; !slices.Equal(got, want) {
		t.Errorf("hosts without TLS %v, want %v", got, want)
	}
}

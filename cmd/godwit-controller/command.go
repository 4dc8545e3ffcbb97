package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/godwit-cni/godwit/pkg/controller"
)

// version is set by the build.
var version = "dev"

func command() *cobra.Command {
	c := controller.Defaults()
	var kubeconfig, logLevel string
	t := tlsOptions{agent: "godwit-agent"}
	cmd := &cobra.Command{
		Use:   "godwit-controller",
		Short: "Turns Kubernetes objects into rows of the OVN northbound database",
		Long: `godwit-controller gives every pod its address, and writes the logical switches, routers and ports of the pod network into the OVN
northbound database. Run any number of it: one leads, the others take over within seconds.`,
		Version:      version,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return fmt.Errorf("--log-level %q: want debug, info, warn or error", logLevel)
			}
			c.Logger = slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			ctrl.SetLogger(logr.FromSlogHandler(c.Logger.Handler()))
			klog.SetSlogLogger(c.Logger)
			api, err := restConfig(kubeconfig)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, t, api)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&c.NBEndpoints, "nb-remote", nil, "northbound database: ssl:HOST:PORT, tcp:HOST:PORT or unix:PATH; several for a raft cluster (required)")
	f.StringSliceVar(&c.SBEndpoints, "sb-remote", nil, "southbound database, in the same form (required)")
	f.StringSliceVar(&t.sbGate, "sb-gate", nil, "southbound database's gate, instead of --sb-remote: with TLS that is for nodes")
	f.StringVar(&t.dir, "ovn-tls-dir", "", "directory with ca.crt, tls.crt and tls.key for ssl: remotes; read again for every connection")
	f.BoolVar(&t.issuer, "ovn-issuer", false, "make the certificates for ssl: remotes, in Secrets of --namespace, and sign those of nodes; instead of --ovn-tls-dir. With tcp: remotes alone, nodes' are for agents among themselves")
	f.StringSliceVar(&t.hosts, "ovn-hosts", nil, "more names and addresses of the databases' servers for their certificates, beside those of the remotes")
	f.StringSliceVar(&c.DefaultCIDRs, "default-cidrs", c.DefaultCIDRs, "ranges of the Subnet \"default\", at most one per family")
	f.StringSliceVar(&c.JoinCIDRs, "join-cidrs", c.JoinCIDRs, "ranges between the logical router and the nodes, at most one per family")
	f.StringVar(&c.Namespace, "namespace", c.Namespace, "namespace of the leader election lease")
	f.StringVar(&c.MetricsAddress, "metrics-address", c.MetricsAddress, "HOST:PORT of /metrics; 0 for none")
	f.StringVar(&c.HealthAddress, "health-address", c.HealthAddress, "HOST:PORT of /healthz and /readyz; 0 for none")
	f.IntVar(&c.PodWorkers, "pod-workers", c.PodWorkers, "pods that are reconciled at once")
	f.IntVar(&c.KeepMigrations, "keep-migrations", c.KeepMigrations, "PortMigrations that are over to keep of each VM")
	f.StringVar(&c.OTLPEndpoint, "otlp-endpoint", "", "http://HOST:PORT of an OTLP receiver (its HTTP port, usually 4318), for a trace of each live migration; none if empty")
	f.BoolVar(&c.HandoverRules, "handover-rules", c.HandoverRules, "let TCP connections of a migrating VM that NetworkPolicies isolate go on where it arrives; new connections are judged by policy in any case")
	f.DurationVar(&c.HandoverGrace, "handover-grace", c.HandoverGrace, "for how long after a migration TCP segments of connections that are not known yet are taken for such")
	f.BoolVar(&c.Services, "services", c.Services, "balance what pods send to Services; off where kube-proxy or another does, and then off for godwit-agent too")
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file; the pod's service account if empty")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&c.Baselines, "migration-baselines", false, "obey the annotation lab.godwit.dev/baseline of VMIs: for make bench-migration alone")
	f.Lookup("migration-baselines").Hidden = true
	return cmd
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	api, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	// The controller is limited by its workers and by the API server's own priority and fairness, not by the client.
	api.QPS, api.Burst = -1, 0
	return api, nil
}

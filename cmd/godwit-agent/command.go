package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/godwit-cni/godwit/pkg/agent"
)

// options are the flags that are not the agent's configuration.
type options struct {
	kubeconfig, logLevel, logFormat string
}

func command() *cobra.Command {
	cfg, opts := agent.Defaults(), options{}
	cmd := &cobra.Command{
		Use: "godwit-agent", Short: "Attaches this node's pods to the overlay, and the node itself", Args: cobra.NoArgs,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAgent(cmd.Context(), cmd.ErrOrStderr(), cfg, opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.NodeName, "node-name", cfg.NodeName, "name of this node's Node object; required")
	f.StringVar(&cfg.Namespace, "namespace", cfg.Namespace, "namespace that Godwit runs in")
	f.StringVar(&opts.kubeconfig, "kubeconfig", "", "kubeconfig of the API server; the pod's service account if empty")
	f.StringVar(&cfg.OVSEndpoint, "ovs-db", cfg.OVSEndpoint, "local Open_vSwitch database")
	f.StringVar(&cfg.OVNRunDir, "ovn-run-dir", cfg.OVNRunDir, "directory of ovn-controller's control socket, for metrics")
	f.StringVar(&cfg.SBRemote, "sb-remote", cfg.SBRemote, "OVN southbound database for ovn-controller, tcp:IP:PORT[,tcp:IP:PORT...], or ssl: for TLS; required")
	f.StringVar(&cfg.OVNTLSDir, "ovn-tls-dir", cfg.OVNTLSDir, "directory for the node's certificate, the same path for ovn-controller; needed for ssl: alone. godwit-controller --ovn-issuer signs it")
	f.StringVar(&cfg.NodeTLSDir, "node-tls-dir", cfg.NodeTLSDir, "directory for the node's certificate where OVN is reached without TLS: for the agents of other nodes alone; --ovn-tls-dir's serves for both")
	f.BoolVar(&cfg.Switchover, "switchover", cfg.Switchover, "tell the agent of the node that a VM migrates to when it stops here, so that its port is open there when it resumes; needs a certificate")
	f.BoolVar(&cfg.Handoff, "handoff", cfg.Handoff, "hand the connections of VMs that migrate over to connection tracking where they go; needs --switchover, and the kernel's datapath")
	f.IntVar(&cfg.SwitchoverPort, "switchover-port", cfg.SwitchoverPort, "TCP port on the nodes' own addresses for that, the same on all nodes")
	f.StringVar(&cfg.PodsDir, "pods-dir", cfg.PodsDir, "the kubelet's directory of pods, where launchers have libvirt's socket")
	f.StringVar(&cfg.Underlay, "underlay", cfg.Underlay, "where tunnels end: an interface's name, or a CIDR; the Node's InternalIP if empty")
	f.StringVar(&cfg.UnderlayBridge, "underlay-bridge", cfg.UnderlayBridge, "bridge to put the underlay's link into, with its addresses, on the userspace datapath; none if empty")
	f.IntVar(&cfg.MTU, "mtu", cfg.MTU, "MTU of pods in bytes; the underlay's less the tunnel's overhead if 0")
	f.StringVar(&cfg.Datapath, "datapath", cfg.Datapath, "datapath of the integration bridge: auto, system (kernel) or netdev (userspace)")
	f.StringVar(&cfg.CNISocket, "cni-socket", cfg.CNISocket, "socket for godwit-cni; the same path on the host")
	f.StringVar(&cfg.CNIBinSource, "cni-bin-source", cfg.CNIBinSource, "godwit-cni to install")
	f.StringVar(&cfg.CNIBinDir, "cni-bin-dir", cfg.CNIBinDir, "the runtime's directory of CNI plugins")
	f.StringVar(&cfg.CNIConfDir, "cni-conf-dir", cfg.CNIConfDir, "the runtime's directory of CNI configurations")
	f.BoolVar(&cfg.Services, "services", cfg.Services, "serve Services for the node; false where kube-proxy does")
	f.StringVar(&cfg.MetricsAddress, "metrics-address", cfg.MetricsAddress, "address of /metrics, /healthz and /readyz")
	f.StringVar(&opts.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&opts.logFormat, "log-format", "text", "text or json")
	cmd.AddCommand(tcpdumpCommand(), echoCommand(), fitnessCommand())
	return cmd
}

func runAgent(ctx context.Context, stderr io.Writer, cfg agent.Config, opts options) error {
	log, err := newLogger(stderr, opts)
	if err != nil {
		return err
	}
	klog.SetLogger(logr.FromSlogHandler(log.Handler()))
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", opts.kubeconfig)
	if err != nil {
		return fmt.Errorf("find the API server: %w: pass --kubeconfig outside of a pod", err)
	}
	rest.UserAgent = "godwit-agent/" + version
	src, writers, err := agent.API(rest, cfg.NodeName)
	if err != nil {
		return err
	}
	if writers.Certificates, err = agent.CertificatesAPI(rest, cfg.Namespace); err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics of the process: %w", err)
		}
	}
	a, err := agent.New(cfg, src, writers, log, reg)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

func newLogger(w io.Writer, opts options) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(opts.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	handler := &slog.HandlerOptions{Level: level}
	switch opts.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, handler)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, handler)), nil
	default:
		return nil, fmt.Errorf("--log-format %q is neither text nor json", opts.logFormat)
	}
}

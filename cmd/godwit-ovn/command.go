package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/godwit-cni/godwit/pkg/ovnpod"
)

// options are what the subcommands share.
type options struct {
	ovnpod.Config
	kubeconfig string
	// metrics is where members serves them.
	metrics string
	log     *slog.Logger
}

func command() *cobra.Command {
	o := &options{Config: ovnpod.Defaults()}
	cmd := &cobra.Command{
		Use: "godwit-ovn", Short: "Runs OVN's and Open vSwitch's daemons as containers",
		Long: `Each subcommand but gate, members, uninstall, probe and size prepares what a daemon needs and becomes that daemon. What comes after -- are arguments of the daemon,
after all others.`,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			o.log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return o.Validate()
		},
	}
	f := cmd.PersistentFlags()
	// A container's probes have its environment, and not its arguments.
	f.StringVar(&o.NBRemote, "nb-remote", os.Getenv("GODWIT_NB_REMOTE"), "northbound database, tcp:IP:PORT[,tcp:IP:PORT...], or ssl: for TLS: all nodes that may hold a copy; $GODWIT_NB_REMOTE if left out")
	f.StringVar(&o.SBRemote, "sb-remote", os.Getenv("GODWIT_SB_REMOTE"), "southbound database, likewise; $GODWIT_SB_REMOTE if left out")
	f.StringVar(&o.SBGate, "sb-gate", os.Getenv("GODWIT_SB_GATE"), "with ssl:, the southbound database's gate for administrators, by the same addresses: --sb-remote is for nodes; $GODWIT_SB_GATE if left out")
	f.StringVar(&o.ServerTLS, "server-tls-dir", o.ServerTLS, "with ssl:, directory of the southbound database's certificate for nodes: ca.crt, tls.crt, tls.key")
	f.StringVar(&o.AdminTLS, "admin-tls-dir", o.AdminTLS, "with ssl:, directory of the administrators' certificate, likewise")
	f.StringVar(&o.PodName, "pod-name", "", "name of this pod of the StatefulSet")
	f.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace that Godwit runs in")
	f.StringVar(&o.StateDir, "state-dir", o.StateDir, "directory of the northbound and southbound databases")
	f.StringVar(&o.SwitchDir, "switch-dir", o.SwitchDir, "directory of the node's own Open_vSwitch database")
	f.StringVar(&o.RunDir, "run-dir", o.RunDir, "directory of OVN's sockets")
	f.StringVar(&o.SwitchRunDir, "switch-run-dir", o.SwitchRunDir, "directory of Open vSwitch's sockets")
	f.StringVar(&o.SchemaDir, "schema-dir", o.SchemaDir, "directory of OVN's schemas")
	f.StringVar(&o.SwitchSchemaDir, "switch-schema-dir", o.SwitchSchemaDir, "directory of Open vSwitch's schema")
	f.DurationVar(&o.ElectionTimer, "election-timer", o.ElectionTimer, "for how long members of a new cluster do without their leader before they choose another")
	f.IntVar(&o.Nice, "nice", o.Nice, "niceness of the daemon")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the API server; the pod's service account if empty")
	cmd.AddCommand(o.member(ovnpod.ProbeNB, "northbound"), o.member(ovnpod.ProbeSB, "southbound"), o.northd(), o.ovsdb(), o.vswitchd(), o.controller(), o.gate(), o.members(), o.uninstall(), o.probe(), o.size())
	return cmd
}

func (o *options) member(kind, database string) *cobra.Command {
	return &cobra.Command{
		Use: kind + " [-- ARG…]", Short: "Make or join the cluster of the " + database + " database, and become its server",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := o.Database(kind)
			if err != nil {
				return err
			}
			api, err := o.api()
			if err != nil {
				return err
			}
			addresses, err := ovnpod.NodeAddresses()
			if err != nil {
				return err
			}
			o.Extra = args
			argv, err := ovnpod.Member{Config: o.Config, Database: d, API: api, Log: o.log, Addresses: addresses}.Prepare(cmd.Context())
			if err != nil {
				return err
			}
			return ovnpod.Become(o.log, o.Nice, argv)
		},
	}
}

func (o *options) northd() *cobra.Command {
	return &cobra.Command{
		Use: "northd [-- ARG…]", Short: "Become ovn-northd",
		RunE: func(_ *cobra.Command, args []string) error {
			o.Extra = args
			argv, err := o.Northd()
			if err != nil {
				return err
			}
			return ovnpod.Become(o.log, o.Nice, argv)
		},
	}
}

func (o *options) ovsdb() *cobra.Command {
	return o.local("ovsdb", "Make or convert the node's own database, and become its server",
		func(ctx context.Context, s ovnpod.Switch) (argv []string, nice int, err error) {
			argv, err = s.Database(ctx)
			return argv, o.Nice, err
		})
}

func (o *options) vswitchd() *cobra.Command {
	return o.local("vswitchd", "Wait for the node's own database, and become ovs-vswitchd",
		func(ctx context.Context, s ovnpod.Switch) (argv []string, nice int, err error) { return s.Daemon(ctx) })
}

func (o *options) controller() *cobra.Command {
	return o.local("controller", "Wait for the node's own database, and become ovn-controller",
		func(ctx context.Context, s ovnpod.Switch) (argv []string, nice int, err error) {
			argv, err = s.Controller(ctx)
			return argv, o.Nice, err
		})
}

func (o *options) local(use, short string, prepare func(context.Context, ovnpod.Switch) ([]string, int, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " [-- ARG…]", Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Extra = args
			argv, nice, err := prepare(cmd.Context(), ovnpod.Switch{Config: o.Config, Log: o.log})
			if err != nil {
				return err
			}
			return ovnpod.Become(o.log, nice, argv)
		},
	}
}

func (o *options) gate() *cobra.Command {
	return &cobra.Command{
		Use: "gate", Short: "Let those in to the southbound database who have an administrator's certificate, and its members to one another", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addresses, err := ovnpod.NodeAddresses()
			if err != nil {
				return err
			}
			return ovnpod.Gates{Config: o.Config, Log: o.log, Addresses: addresses}.Run(cmd.Context())
		},
	}
}

func (o *options) members() *cobra.Command {
	cmd := &cobra.Command{
		Use: "members", Short: "Keep the clusters of both databases to the members that there should be, and to this image's schema; serve metrics of them and of ovn-northd", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := o.api()
			if err != nil {
				return err
			}
			census := &ovnpod.Census{Config: o.Config, Log: o.log}
			var watchers []*ovnpod.Watcher
			for _, kind := range []string{ovnpod.ProbeNB, ovnpod.ProbeSB} {
				d, err := o.Database(kind)
				if err != nil {
					return err
				}
				census.Databases = append(census.Databases, d)
				watchers = append(watchers, &ovnpod.Watcher{Database: d, API: api, Log: o.log, Now: time.Now})
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			census.Context = ctx
			g.Go(func() error { return ovnpod.Watch(ctx, watchers...) })
			if o.metrics != "" {
				g.Go(func() error {
					if err := ovnpod.Serve(ctx, o.metrics, census); err != nil && ctx.Err() == nil {
						o.log.Warn("there are no metrics; the clusters are looked after all the same", "error", err)
					}
					return nil
				})
			}
			return g.Wait()
		},
	}
	cmd.Flags().StringVar(&o.metrics, "metrics-address", ":9479", "address of /metrics; none if empty")
	return cmd
}

func (o *options) uninstall() *cobra.Command {
	u := ovnpod.Uninstaller{PluginDir: "/opt/cni/bin", ConfigurationDir: "/etc/cni/net.d"}
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take from this node what Godwit has left, and stay", Args: cobra.NoArgs,
		Long: `uninstall waits until none of Godwit's pods runs on this node, and removes what they have left: CNI configuration and plugin, nftables tables, links, files. The link of the tunnels gets its
addresses and routes back. It stays until it is told to end; "probe uninstall" says whether the node is clean. Forwarding (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding) stays on.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u.Config, u.Log = o.Config, o.log
			if err := u.Run(cmd.Context()); err != nil {
				return err
			}
			o.log.Info("the node is clean")
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().StringVar(&u.Root, "root", "/", "where the node's root directory is")
	cmd.Flags().StringVar(&u.PluginDir, "cni-bin-dir", u.PluginDir, "the runtime's directory of CNI plugins, on the node")
	cmd.Flags().StringVar(&u.ConfigurationDir, "cni-conf-dir", u.ConfigurationDir, "the runtime's directory of CNI configurations, on the node")
	cmd.Flags().BoolVar(&u.Databases, "databases", false, "remove this node's copies of OVN's databases too")
	return cmd
}

func (o *options) probe() *cobra.Command {
	alive := false
	cmd := &cobra.Command{
		Use: "probe " + strings.Join(ovnpod.Probes(), "|"), Short: "Say whether a daemon of this node is ready", Args: cobra.ExactArgs(1), ValidArgs: ovnpod.Probes(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cobra.OnlyValidArgs(cmd, args); err != nil {
				return err
			}
			if alive {
				return o.Alive(cmd.Context(), args[0])
			}
			return o.Ready(cmd.Context(), args[0])
		},
	}
	cmd.Flags().BoolVar(&alive, "alive", false, "only whether it answers")
	return cmd
}

func (o *options) size() *cobra.Command {
	return &cobra.Command{
		Use: "size nb|sb", Short: "Print how many bytes the file of this pod's member of a database has", Args: cobra.ExactArgs(1), ValidArgs: []string{ovnpod.ProbeNB, ovnpod.ProbeSB},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cobra.OnlyValidArgs(cmd, args); err != nil {
				return err
			}
			d, err := o.Database(args[0])
			if err != nil {
				return err
			}
			file, err := os.Stat(d.File)
			if err != nil {
				return fmt.Errorf("look at the database's file: %w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), file.Size())
			return err
		},
	}
}

func (o *options) api() (ovnpod.API, error) {
	config := rest.InClusterConfig
	if o.kubeconfig != "" {
		config = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", o.kubeconfig) }
	}
	api, err := config()
	if err != nil {
		return ovnpod.API{}, fmt.Errorf("find the API server: %w: pass --kubeconfig outside of a pod", err)
	}
	api.UserAgent = "godwit-ovn/" + version
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return ovnpod.API{}, fmt.Errorf("make a client of the API server: %w", err)
	}
	return ovnpod.API{Client: client, Namespace: o.Namespace}, nil
}

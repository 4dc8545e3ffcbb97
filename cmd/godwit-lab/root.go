package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// exitStatus ends the program with that status and without a message.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// options are common to all commands.
type options struct {
	name  string
	debug bool
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use: "godwit-lab", Short: "A whole Kubernetes cluster with OVN on one Linux machine", SilenceUsage: true, SilenceErrors: true,
		Long: "A whole Kubernetes cluster with OVN on one Linux machine: real API server, kubelets, Open vSwitch and ovn-controller in namespaces.\n" +
			"Nothing is installed, and `down` leaves nothing behind. The lab's files are below GODWIT_LAB_DIR (/var/lib/godwit-lab),\n" +
			"downloads and built programs below GODWIT_CACHE (~/.cache).",
	}
	root.PersistentFlags().StringVar(&o.name, "name", "default", "which lab, when there are several")
	root.PersistentFlags().BoolVar(&o.debug, "debug", false, "say more")
	root.AddCommand(o.upCommand(), o.downCommand(), o.statusCommand(), o.execCommand(), o.logsCommand(), o.kubeconfigCommand(), o.kubectlCommand(),
		o.nodeCommand(), o.dnsCommand(), o.multusCommand(), o.checkCommand(), o.demoCommand(), o.imagesCommand(), o.packagesCommand(), o.vmCommand(), machineCommand(), probeCommand(), benchCommand(),
		kubevirtCommand())
	sayUsage(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	return root
}

func (o *options) logger() *slog.Logger {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	return slog.New(newProgress(os.Stderr, level))
}

func (o *options) open() (*lab.Lab, error) {
	dir, err := lab.Dir(o.name)
	if err != nil {
		return nil, err
	}
	l, err := lab.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: a lab is root's: run godwit-lab as root, for example with sudo", err)
	}
	return l, err
}

// sayUsage adds to errors about arguments and flags what was expected, for a command and all below it.
func sayUsage(cmd *cobra.Command) {
	if want := cmd.Args; want != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := want(cmd, args); err != nil {
				return fmt.Errorf("%w: want %s; see %s --help", err, cmd.UseLine(), cmd.CommandPath())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		sayUsage(c)
	}
}

func (o *options) upCommand() *cobra.Command {
	var c lab.Config
	var tls bool
	cmd := &cobra.Command{
		Use: "up", Short: "Make the lab, or repair and update it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			c.Name, c.Log, c.Program, c.Plain = o.name, o.logger(), self, !tls
			l, err := lab.Up(cmd.Context(), c)
			if err != nil {
				return err
			}
			fmt.Printf("The lab is up. Use godwit-lab kubectl, or:\n  export KUBECONFIG=%s\n", l.Kubeconfig())
			return nil
		},
	}
	cmd.Flags().IntVar(&c.Nodes, "nodes", 0, "how many nodes; 3 in a new lab")
	cmd.Flags().StringVar(&c.IPFamily, "ip-family", "", "dual (in a new lab), ipv4 or ipv6")
	cmd.Flags().StringVar(&c.CNI, "cni", "", "godwit (in a new lab), or none for nodes that stay NotReady")
	cmd.Flags().StringVar(&c.OVN, "ovn", "", "pods, as yamls/ovn.yaml has them (in a new lab with Godwit), or processes of the machines, as where OVN is there before Godwit")
	cmd.Flags().StringVar(&c.Containerd, "containerd", "", "package (in a new lab), Debian's, or new: of the release that test/kube/containerd pins, three minutes of processor time to build")
	cmd.Flags().BoolVar(&tls, "tls", true, "with --ovn pods, in a new lab: OVN's databases by mutual TLS, as yamls/ has it")
	cmd.Flags().BoolVar(&c.Reload, "reload", false, "restart Godwit's pods even if their image has not changed")
	cmd.Flags().BoolVar(&c.Keep, "keep", false, "leave an unfinished lab after a failure or Ctrl-C")
	return cmd
}

func (o *options) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the lab, with everything that belongs to it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := o.open()
			if errors.Is(err, lab.ErrNoLab) {
				o.logger().Info("there is no lab", "name", o.name)
				return nil
			}
			if err != nil {
				return err
			}
			l.LogTo(o.logger())
			if err := l.Down(cmd.Context()); err != nil {
				return err
			}
			o.logger().Info("the lab is removed", "name", o.name)
			return nil
		},
	}
}

func (o *options) nodeCommand() *cobra.Command {
	node := &cobra.Command{Use: "node", Short: "Stop, start or crash a node"}
	for _, v := range []struct {
		use, short string
		do         func(*cobra.Command, *lab.Node) error
	}{
		{"stop", "Shut a node down: its processes are asked to end", func(c *cobra.Command, n *lab.Node) error { return n.Stop(c.Context()) }},
		{"start", "Boot a node that does not run", func(c *cobra.Command, n *lab.Node) error { return n.Start(c.Context()) }},
		{"crash", "Cut a node's power and cables", func(c *cobra.Command, n *lab.Node) error { return n.Crash(c.Context()) }},
	} {
		node.AddCommand(&cobra.Command{
			Use: v.use + " NODE", Short: v.short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				l, err := o.open()
				if err != nil {
					return err
				}
				return v.do(cmd, l.Node(args[0]))
			},
		})
	}
	return node
}

func (o *options) imagesCommand() *cobra.Command {
	var output, release string
	cmd := &cobra.Command{
		Use: "images", Short: "Build the lab's images, and Godwit's, as archives", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			digests, err := lab.BuildImages(cmd.Context(), o.logger(), output, lab.Build{CNI: lab.CNIGodwit, OVN: lab.OVNPods, Version: release, SBOM: true})
			if err != nil {
				return err
			}
			fmt.Println(lab.GodwitImage, lab.OVNImage, digests)
			return nil
		},
	}
	cmd.Flags().StringVar(&output, "output", "out/images", "directory for the archives")
	cmd.Flags().StringVar(&release, "release", "", "version that Godwit's programs and images have; dev if empty")
	return cmd
}

func (o *options) packagesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "packages", Short: "Print the directory of unpacked packages, downloading them if need be", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := packages.Ensure(cmd.Context(), o.logger())
			if err != nil {
				return err
			}
			fmt.Println(root.Dir())
			return nil
		},
	}
}

// machineCommand is what up starts machines with.
func machineCommand() *cobra.Command {
	return &cobra.Command{
		Use: "machine SPEC", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return boot.Run(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, nil)), args[0])
		},
	}
}

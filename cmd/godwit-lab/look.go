package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab"
)

func (o *options) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the lab's machines and their services", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			return l.Status(cmd.Context(), os.Stdout)
		},
	}
}

// asStatus makes a program's own status ours; it has said itself what was wrong.
func asStatus(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exitStatus(exit.ExitCode())
	}
	return err
}

func (o *options) execCommand() *cobra.Command {
	return &cobra.Command{
		Use: "exec MACHINE -- COMMAND [ARG…]", Short: "Run a command on a node, in all its namespaces; also on hub and outside",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			return asStatus(l.Run(cmd.Context(), args[0], lab.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, args[1:]...))
		},
	}
}

func (o *options) logsCommand() *cobra.Command {
	var lines int
	cmd := &cobra.Command{
		Use: "logs [MACHINE/SERVICE]", Short: "Print a service's log, such as node1/kubelet; without one, list them", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				names, err := l.LogNames()
				for _, n := range names {
					fmt.Println(n)
				}
				return err
			}
			return l.CopyLog(os.Stdout, args[0], lines)
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 0, "only that many last lines; 0 for all")
	return cmd
}

func (o *options) kubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of the administrator's kubeconfig", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			fmt.Println(l.Kubeconfig())
			return nil
		},
	}
}

func (o *options) kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl [ARG…]", Short: "Run the lab's kubectl with its kubeconfig", DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			kubectl, err := l.Kubectl()
			if err != nil {
				return err
			}
			c := exec.CommandContext(cmd.Context(), kubectl, append([]string{"--kubeconfig=" + l.Kubeconfig()}, args...)...)
			c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
			return asStatus(c.Run())
		},
	}
}

func (o *options) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Compare API, NB, SB, OVS and kernel, and print every difference", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			differences, err := l.Check(cmd.Context())
			if err != nil {
				return err
			}
			for _, d := range differences {
				fmt.Println(d)
			}
			if len(differences) > 0 {
				return exitStatus(1)
			}
			fmt.Println("no differences")
			return nil
		},
	}
}

func (o *options) dnsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "dns", Short: "Start the cluster's DNS, a CoreDNS, unless it runs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			l.LogTo(o.logger())
			return l.StartDNS(cmd.Context())
		},
	}
}

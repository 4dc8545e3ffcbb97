package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// passCommands are those that run a program of OVN's or Open vSwitch's where it belongs, with the arguments that they are given.
func (s *session) passCommands() []*cobra.Command {
	return []*cobra.Command{
		s.databaseCommand(northbound, "nbctl", "the northbound database: what Godwit asked for", "  kubectl ovn nbctl show\n  kubectl ovn nbctl -- --no-leader-only lsp-list subnet/default"),
		s.databaseCommand(southbound, "sbctl", "the southbound database: what northd made of it, and where each port is", "  kubectl ovn sbctl show\n  kubectl ovn sbctl -- --no-leader-only lflow-list subnet/default"),
		s.nodeCommand("vsctl", "a node's database of Open vSwitch", "  kubectl ovn vsctl node1 show", vsctl),
		s.nodeCommand("ofctl", "a node's bridges: OpenFlow", "  kubectl ovn ofctl node1 -- dump-flows br-int table=0", ofctl),
		s.nodeCommand("dpctl", "a node's datapath: flows, ports and connections, of the kernel or of ovs-vswitchd", "  kubectl ovn dpctl node1 -- dump-flows -m\n  kubectl ovn dpctl node1 dump-conntrack", dpctl),
		s.nodeCommand("appctl", "a node's daemons: ovs-vswitchd, or -t ovn-controller, -t ovsdb-server", "  kubectl ovn appctl node1 coverage/show\n  kubectl ovn appctl node1 -- -t ovn-controller connection-status", appctl),
	}
}

// onNode is what is run on a node, for the arguments given.
type onNode struct {
	component, container string
	args                 []string
}

func vsctl(args []string) onNode {
	return onNode{switchComponent, "vswitchd", append([]string{"ovs-vsctl"}, args...)}
}

func ofctl(args []string) onNode {
	return onNode{switchComponent, "vswitchd", append([]string{"ovs-ofctl"}, args...)}
}

// dpctl asks ovs-vswitchd: it knows every datapath, its own as well as the kernel's, which is all that ovs-dpctl knows. It wants the command's name before its options.
func dpctl(args []string) onNode {
	command := "help"
	if i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") }); i >= 0 {
		command, args = args[i], slices.Delete(slices.Clone(args), i, i+1)
	}
	return onNode{switchComponent, "vswitchd", append([]string{"ovs-appctl", "dpctl/" + command}, args...)}
}

// appctl asks the daemon that -t names, where its control socket is.
func appctl(args []string) onNode {
	target, rest := "ovs-vswitchd", args
	for i, a := range args {
		name, long := strings.CutPrefix(a, "--target=")
		switch {
		case long:
			target, rest = name, slices.Delete(slices.Clone(args), i, i+1)
		case (a == "-t" || a == "--target") && i+1 < len(args):
			target, rest = args[i+1], slices.Delete(slices.Clone(args), i, i+2)
		case strings.HasPrefix(a, "-"):
			continue
		}
		break // options of the daemon's own command follow it
	}
	switch target {
	case "ovn-controller":
		return onNode{controllerComponent, "ovn-controller", append([]string{"ovn-appctl", "-t", target}, rest...)}
	case "vswitchd":
		target = "ovs-vswitchd"
	}
	return onNode{switchComponent, "vswitchd", append([]string{"ovs-appctl", "-t", target}, rest...)}
}

const passText = `

Arguments go to %s as they are, after -- if the first begins with a dash; its exit code is this command's. Standard input is passed on where an argument is "-". This needs the right to
create pods/exec in the namespace of Godwit, and OVN as pods of Godwit's (docs/ovn-pods.md).`

func (s *session) databaseCommand(d database, name, of, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " [-- ARGS]", Short: d.client + " on " + of,
		Long: fmt.Sprintf("%s runs %s at the member that leads: others take no writes, and may be behind. With --no-leader-only among the arguments, at any member that answers: for reads when nobody leads."+
			passText, name, d.client, d.client),
		Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			where := c.leader
			if slices.Contains(args, "--no-leader-only") {
				where = c.member
			}
			in, err := where(cmd.Context(), d)
			if err != nil {
				return err
			}
			return pass(cmd, c.containers, in, append([]string{d.client}, args...))
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (s *session) nodeCommand(name, of, example string, run func(args []string) onNode) *cobra.Command {
	cmd := &cobra.Command{
		Use: name + " NODE [-- ARGS]", Short: "ovs-" + name + " on " + of, Args: cobra.MinimumNArgs(1), ValidArgsFunction: s.complete(nodes),
		Long:    fmt.Sprintf("%s runs ovs-%s on a node, where its pods of Open vSwitch and OVN are."+passText, name, name, "ovs-"+name),
		Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			node, args := args[0], args[1:]
			if len(args) > 0 && args[0] == "--" {
				args = args[1:] // the others are ovs-vsctl's own
			}
			what := run(args)
			in, err := c.on(cmd.Context(), node, what.component, what.container)
			if err != nil {
				return err
			}
			return pass(cmd, c.containers, in, what.args)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// pass runs a program with the command's own streams. The program has said itself what went wrong, so that of its exit code nothing more is printed.
func pass(cmd *cobra.Command, c containers, in container, args []string) error {
	p := program{in: in, args: args, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
	if slices.ContainsFunc(args, func(a string) bool { return a == "-" || a == "/dev/stdin" }) {
		p.stdin = cmd.InOrStdin()
	}
	err := c.run(cmd.Context(), p)
	var exit *ExitError
	cmd.SilenceErrors = errors.As(err, &exit) || errors.Is(err, context.Canceled)
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/agent"
	"github.com/godwit-cni/godwit/pkg/errand"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// exitError is an error with the code that the process exits with.
type exitError struct {
	error
	code int
}

// Unwrap is the error itself.
func (e exitError) Unwrap() error { return e.error }

func tcpdumpCommand() *cobra.Command {
	d := agent.Tcpdump{Program: "tcpdump", Silence: errand.Silence}
	var port string
	cmd := &cobra.Command{
		Use: "tcpdump --port PORT [-- ARGS]", Short: "Run tcpdump on the link of a port of this node: what kubectl ovn tcpdump does here",
		Long: fmt.Sprintf(`tcpdump waits until the port is plugged in on this node, and runs tcpdump on its link, as nobody, with CAP_NET_RAW alone. It ends with its standard input, and when nothing has come
from there for %s. Its exit code is tcpdump's, or %d when the link is gone.`, errand.Silence, errand.ExitGone),
		RunE: func(cmd *cobra.Command, args []string) error {
			if port == "" {
				return errors.New("--port is missing: the name of a LogicalSwitchPort")
			}
			d.Port, d.Args = ident.PortName(port), args
			d.In, d.Out, d.Err = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := d.Run(cmd.Context()); err != nil {
				return exitError{err, d.ExitCode(err)}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&port, "port", "", "the LogicalSwitchPort's name; required")
	f.StringVar(&d.OVSEndpoint, "ovs-db", agent.Defaults().OVSEndpoint, "local Open_vSwitch database")
	return cmd
}

// smallEcho is the size of a packet that every network carries, in bytes: IPv6 asks for no less.
const smallEcho = 1280

// echoesAtOnce is how many addresses are asked at once.
const echoesAtOnce = 32

// echoes asks an address with a packet of a size, and with a small one where that is not answered.
func echoes(ctx context.Context, to netip.Addr, size int) []errand.Echo {
	var all []errand.Echo
	for _, bytes := range []int{size, smallEcho} {
		e := errand.Echo{To: to, Size: bytes}
		took, err := netdev.Echo{Link: ident.GatewayInterface, To: to, Size: bytes}.Ask(ctx)
		if e.Microseconds = took.Microseconds(); err != nil {
			e.Error = err.Error()
		}
		all = append(all, e)
		if e.Answered() || size <= smallEcho {
			break
		}
	}
	return all
}

func echoCommand() *cobra.Command {
	var size int
	cmd := &cobra.Command{
		Use: "echo --size BYTES ADDRESS...", Short: "Send packets of a size to other nodes' ovn0 through the tunnels: what kubectl ovn migration check does here", Args: cobra.MinimumNArgs(1),
		Long: fmt.Sprintf(`echo sends to each address, by ovn0, an ICMP echo request that fills a packet of the size and may not be fragmented, and, where that is not answered, one of %d bytes. It prints what
became of them as JSON.`, smallEcho),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, ctx := errgroup.WithContext(cmd.Context())
			g.SetLimit(echoesAtOnce)
			all := make([][]errand.Echo, len(args))
			for i, text := range args {
				to, err := netip.ParseAddr(text)
				if err != nil {
					return err
				}
				g.Go(func() error {
					all[i] = echoes(ctx, to, size)
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(slices.Concat(all...))
		},
	}
	cmd.Flags().IntVar(&size, "size", smallEcho, "of the IP packet, in bytes")
	return cmd
}

// answerTimeout bounds the questions to ovn-controller and to the agent. An ovn-controller that computes all flows of a large cluster anew answers when it has.
const answerTimeout = 5 * time.Second

func fitnessCommand() *cobra.Command {
	cfg := agent.Defaults()
	cmd := &cobra.Command{
		Use: "fitness", Short: "Ask the node's ovn-controller and agent for what a migration needs: what kubectl ovn migration check does here", Args: cobra.NoArgs,
		Long: `fitness asks the ovn-controller that runs on the node for its release, by its control socket, and the agent whether it hands connections over, by its metrics. It prints what they say as JSON.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			var found errand.Fitness
			var err error
			if found.Handoff, err = agent.HandsOver(ctx, cfg.MetricsAddress); err != nil {
				found.HandoffError = err.Error()
			}
			said, err := ovs.Ask(ctx, filepath.Join(cfg.OVNRunDir, "ovn-controller*.ctl"), "version")
			if found.Controller = ovs.ParseVersion(said); err != nil {
				found.Error = err.Error()
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(found)
		},
	}
	cmd.Flags().StringVar(&cfg.OVNRunDir, "ovn-run-dir", cfg.OVNRunDir, "directory of ovn-controller's control socket")
	cmd.Flags().StringVar(&cfg.MetricsAddress, "metrics-address", cfg.MetricsAddress, "the agent's")
	return cmd
}

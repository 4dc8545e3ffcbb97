package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab"
)

// demoDownTimeout bounds the clean-up after an interrupted demo.
const demoDownTimeout = time.Minute

func (o *options) demoCommand() *cobra.Command {
	var c lab.Config
	pods := 30
	cmd := &cobra.Command{
		Use: "demo", Short: "Make a lab, let all pods reach each other, and remove it again; a lab that is up stays up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			_, err = o.open()
			stays := !errors.Is(err, lab.ErrNoLab)
			c.Name, c.Log, c.Program = o.name, o.logger(), self
			l, err := lab.Up(cmd.Context(), c)
			if err != nil {
				return err
			}
			if !stays {
				defer func() {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), demoDownTimeout)
					defer cancel()
					c.Log.Info("removing the lab")
					err = errors.Join(err, l.Down(ctx))
				}()
			}
			return l.Demo(cmd.Context(), c.Log, os.Stdout, pods)
		},
	}
	cmd.Flags().IntVar(&c.Nodes, "nodes", 0, "how many nodes; 3 in a new lab")
	cmd.Flags().StringVar(&c.IPFamily, "ip-family", "", "dual (in a new lab), ipv4 or ipv6")
	cmd.Flags().IntVar(&pods, "pods", pods, "how many pods")
	return cmd
}

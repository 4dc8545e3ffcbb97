package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/demo"
)

// demoDownTimeout bounds the clean-up after an interrupted demo.
const demoDownTimeout = time.Minute

func (o *options) demoCommand() *cobra.Command {
	var c lab.Config
	var d demo.Config
	var pods int
	cmd := &cobra.Command{
		Use: "demo", Short: "Make a lab, migrate a VM there and back under traffic, and remove the lab again; one that is up stays up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			c.Name, c.Log, c.Program, c.Own = o.name, o.logger(), self, true
			d.Log, d.Out = c.Log, os.Stdout
			if d.Lab, err = lab.Up(cmd.Context(), c); err != nil {
				return err
			}
			if !d.Lab.Owned() {
				c.Log.Info("there was a lab: it is used, and stays until godwit-lab down")
			} else {
				defer func() {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), demoDownTimeout)
					defer cancel()
					c.Log.Info("removing the lab")
					err = errors.Join(err, d.Lab.Down(ctx))
				}()
			}
			if pods > 0 {
				return demo.Pods(cmd.Context(), d, pods)
			}
			return demo.Run(cmd.Context(), d)
		},
	}
	cmd.Flags().IntVar(&c.Nodes, "nodes", 0, "how many nodes; 3 in a new lab")
	cmd.Flags().StringVar(&c.IPFamily, "ip-family", "", "dual (in a new lab), ipv4 or ipv6")
	cmd.Flags().StringVar(&d.Picture, "picture", "", "file to draw the first migration in, as SVG")
	cmd.Flags().IntVar(&pods, "pods", 0, "instead of a VM, so many pods that all reach each other, and a table")
	return cmd
}

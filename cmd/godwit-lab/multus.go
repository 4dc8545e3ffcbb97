package main

import "github.com/spf13/cobra"

func (o *options) multusCommand() *cobra.Command {
	off := false
	cmd := &cobra.Command{
		Use: "multus", Short: "Put Multus before Godwit on every node, for pods and VMs with second networks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			l.LogTo(o.logger())
			if off {
				return l.StopMultus(cmd.Context())
			}
			return l.StartMultus(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "take it away again: pods that have second networks must be gone")
	return cmd
}

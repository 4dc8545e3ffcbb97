package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/bench/node"
)

// benchCommand measures attachments on the node that it runs on; `make bench-cni` runs it there.
func benchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "bench-attach", Hidden: true, Args: cobra.NoArgs, Short: "Read a job from standard input, measure attachments, print the result",
		RunE: func(cmd *cobra.Command, _ []string) error { return node.Run(cmd.Context(), os.Stdin, os.Stdout) },
	}
}

package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab/echo"
)

// probeCommand asks echo servers from wherever it runs. This program is pid 1 of every machine, so tests run it there as /proc/1/exe.
func probeCommand() *cobra.Command {
	var timeout time.Duration
	var count int
	cmd := &cobra.Command{
		Use: "probe URL…", Short: "Ask tcp://, udp:// and http:// targets, and print a line for each", Args: cobra.MinimumNArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			for _, r := range slices.Concat(echo.ProbeTimes(cmd.Context(), timeout, count, args)...) {
				fmt.Println(r)
				if r.Err != nil {
					err = errors.New("not every target answered")
				}
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "how long a target may take")
	cmd.Flags().IntVar(&count, "count", 1, "how often each target is asked, one after another, until it fails")
	return cmd
}

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/test/lab/boot"
)

// kubevirtCommand is the hub's service that stands in for KubeVirt's controllers.
func kubevirtCommand() *cobra.Command {
	var k boot.KubeVirt
	cmd := &cobra.Command{
		Use: "kubevirt", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return k.Run(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		},
	}
	cmd.Flags().StringVar(&k.Kubeconfig, "kubeconfig", "", "credentials")
	cmd.Flags().StringVar(&k.Machines, "machines", "", "directory of the machines' directories")
	cmd.Flags().StringVar(&k.Journal, "journal", "", "file to note QEMU's events in")
	return cmd
}

// attach carries what is typed to a console and what it prints back, until either ends or ctx does.
func attach(ctx context.Context, console io.ReadWriteCloser) error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(os.Stdout, console)
		done <- err
	}()
	typed := make(chan error, 1)
	go func() {
		_, err := io.Copy(console, os.Stdin)
		typed <- err
	}()
	var err error
	for running := true; running; {
		select {
		case err = <-done:
			running = false
		case inErr := <-typed:
			typed = nil // input has ended; what the guest prints goes on
			err = errors.Join(err, inErr)
		case <-ctx.Done():
			running = false
		}
	}
	return errors.Join(err, console.Close())
}

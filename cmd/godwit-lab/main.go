// Command godwit-lab runs a whole Kubernetes cluster with OVN on one Linux machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode() // of a command in a machine, which has said itself what was wrong
	case errors.Is(err, errDifferences):
		return 1
	}
	fmt.Fprintln(os.Stderr, "godwit-lab:", err)
	return 1
}

// Command godwit-lab runs a whole Kubernetes cluster with OVN on one Linux machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status) // whoever returned it has said what was wrong
	}
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "godwit-lab: interrupted")
	}
	fmt.Fprintln(os.Stderr, "godwit-lab:", err)
	return 1
}

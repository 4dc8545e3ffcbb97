// Command godwit-lab runs a whole Kubernetes cluster with OVN on one Linux machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run()) }

func run() int {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	// A terminal that is closed ends a demo like Ctrl-C, so that nothing stays; nohup keeps its meaning.
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	// Unset, it complains with a stack trace after half a minute, which a first lab exceeds.
	ctrl.SetLogger(logr.Discard())
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

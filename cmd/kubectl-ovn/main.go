// Command kubectl-ovn is kubectl's plugin: `kubectl ovn` tells what the network did to a VM.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/godwit-cni/godwit/pkg/kubectl"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return kubectl.ExitCode(kubectl.Command(version).ExecuteContext(ctx)) // cobra has printed the error
}

// Command godwit-ovn prepares what a daemon of OVN or Open vSwitch needs, and becomes that daemon; besides, it looks after the members of the databases.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set when releases are built.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "godwit-ovn:", err)
		return 1
	}
	return 0
}

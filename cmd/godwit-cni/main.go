// Command godwit-cni is the CNI plugin: the container runtime starts it as "godwit" for every operation.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/godwit-cni/godwit/pkg/cni"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// version is set when releases are built.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	plugin := &cni.Plugin{Context: ctx, Stdout: os.Stdout}
	if e := skel.PluginMainFuncsWithError(plugin.Funcs(), wire.SupportedVersions(), "Godwit CNI plugin "+version); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, "godwit: print error:", err)
		}
		return 1
	}
	return 0
}

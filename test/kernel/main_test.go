package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// nodes of the cluster.
const nodes = 3

// kernelCluster is what all tests share.
var kernelCluster *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	c, err := cluster.Up(ctx, cluster.Config{
		Nodes: nodes, Programs: []string{"./test/lab/traffic/traffic", "./test/kernel/tool"}, Controller: controllerFlags(), Log: log,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel datapath:", err)
		return 1
	}
	down := func() int {
		if err := c.Down(); err != nil {
			fmt.Fprintln(os.Stderr, "kernel datapath:", err)
			return 1
		}
		return 0
	}
	defer suite.DownWhenStopped(ctx, down)()
	kernelCluster = c
	return max(m.Run(), down())
}

// controllerFlags are those of the controller in most tests.
func controllerFlags() []string { return []string{"--handover-grace=" + handoverGrace.String()} }

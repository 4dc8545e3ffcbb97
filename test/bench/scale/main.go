// Command scale measures godwit-controller with thousands of pods on hundreds of nodes: objects alone, against a real API server and a real OVN
// northbound database with northd. It prints a table and writes out/bench/scale.json.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	c := config{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	ctrl.SetLogger(logr.Discard()) // what the API server's test environment has to say
	klog.SetLogger(logr.Discard())
	flag.Var(&c.pods, "pods", "numbers of pods to measure, with commas between")
	flag.IntVar(&c.nodes, "nodes", 200, "simulated nodes")
	flag.IntVar(&c.samples, "samples", 20, "single pods that are measured once the others are there")
	flag.StringVar(&c.controller, "controller", "", "a built godwit-controller; built from this checkout if empty")
	flag.StringVar(&c.keep, "keep", "", "directory to keep the controllers' logs in")
	flag.Parse()
	if len(c.pods) == 0 {
		c.pods = counts{2000, 10000}
	}
	if err := measure(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		return 1
	}
	return 0
}

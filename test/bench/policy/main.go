// Command policy measures what NetworkPolicies cost godwit-controller, the northbound database and northd: objects alone, against a real API server and a real OVN
// central. It prints a table and writes out/bench/policy.json.
//
//	make bench-policy COUNT=1000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctrl.SetLogger(logr.Discard()) // what the API server's test environment has to say
	klog.SetLogger(logr.Discard())
	c, err := options(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = measure(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-policy:", err)
		return 1
	}
	return 0
}

// config is what is to be measured.
type config struct {
	policies, pods, nodes, samples int
	controller, keep               string
	log                            *slog.Logger
}

// options are what the run is asked for: COUNT of the environment, and flags.
func options(args []string) (config, error) {
	c := config{policies: 1000, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if v := os.Getenv("COUNT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return c, fmt.Errorf("COUNT=%s: want a number of policies", v)
		}
		c.policies = n
	}
	f := flag.NewFlagSet("bench-policy", flag.ContinueOnError)
	f.IntVar(&c.policies, "policies", c.policies, "NetworkPolicies; ten in a namespace")
	f.IntVar(&c.pods, "pods", 0, "pods at the end; ten times the policies by default. A tenth of them is the baseline")
	f.IntVar(&c.nodes, "nodes", 0, "simulated nodes; a fifth of the policies by default, and at least 10")
	f.IntVar(&c.samples, "samples", 20, "pods that come, change their labels and go, one at a time")
	f.StringVar(&c.controller, "controller", "", "a built godwit-controller; built from this checkout if empty")
	f.StringVar(&c.keep, "keep", "", "directory to keep the programs' logs in")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if c.pods == 0 {
		c.pods = 10 * c.policies
	}
	if c.nodes == 0 {
		c.nodes = max(10, c.policies/5)
	}
	return c, c.validate()
}

func (c config) validate() error {
	var errs []error
	if c.policies < perNamespace || c.policies%perNamespace != 0 {
		errs = append(errs, fmt.Errorf("%d policies: want a multiple of %d", c.policies, perNamespace))
	}
	if c.pods < 10 || c.pods%10 != 0 {
		errs = append(errs, fmt.Errorf("%d pods: want a multiple of 10", c.pods))
	}
	if c.nodes < 1 || c.samples < 1 {
		errs = append(errs, fmt.Errorf("%d nodes, %d samples: want at least 1", c.nodes, c.samples))
	}
	return errors.Join(errs...)
}

// Command services measures what Services cost godwit-controller, the northbound database and northd: objects alone, against a real API server and a real OVN central. It
// prints a table and writes out/bench/services.json.
//
//	make bench-services COUNT=5000
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
		fmt.Fprintln(os.Stderr, "bench-services:", err)
		return 1
	}
	return 0
}

// config is what is to be measured.
type config struct {
	services, endpoints, subnets, nodes, samples int
	controller, keep                             string
	log                                          *slog.Logger
}

// options are what the run is asked for: COUNT of the environment, and flags.
func options(args []string) (config, error) {
	c := config{services: 5000, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if v := os.Getenv("COUNT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return c, fmt.Errorf("COUNT=%s: want a number of Services", v)
		}
		c.services = n
	}
	f := flag.NewFlagSet("bench-services", flag.ContinueOnError)
	f.IntVar(&c.services, "services", c.services, "Services at the end. A tenth of them is the baseline")
	f.IntVar(&c.endpoints, "endpoints", 10, "endpoints of each")
	f.IntVar(&c.subnets, "subnets", 10, "Subnets beside the default one at the end, each a switch; without any in the baseline")
	f.IntVar(&c.nodes, "nodes", 100, "simulated nodes")
	f.IntVar(&c.samples, "samples", 20, "endpoints that go and come, and pods that come, one at a time")
	f.StringVar(&c.controller, "controller", "", "a built godwit-controller; built from this checkout if empty")
	f.StringVar(&c.keep, "keep", "", "directory to keep the programs' logs in")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	return c, c.validate()
}

func (c config) validate() error {
	var errs []error
	if c.services < 10 || c.services%10 != 0 || c.services > maxServices {
		errs = append(errs, fmt.Errorf("%d services: want a multiple of 10, and at most %d", c.services, maxServices))
	}
	if c.endpoints < 2 || c.endpoints > maxEndpoints {
		errs = append(errs, fmt.Errorf("%d endpoints: want 2 to %d", c.endpoints, maxEndpoints))
	}
	if c.nodes < 1 || c.samples < 1 || c.subnets < 0 || c.subnets > maxSubnets {
		errs = append(errs, fmt.Errorf("%d nodes, %d samples, %d subnets: want at least 1, 1, and 0 to %d", c.nodes, c.samples, c.subnets, maxSubnets))
	}
	return errors.Join(errs...)
}

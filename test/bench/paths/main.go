// Command paths measures, in the lab, what a pod's connections cost on the way to another pod and on the way to the ClusterIP of a Service of which that pod is the only
// endpoint, in turn; and the former where the controller serves no Services. It prints a table and writes out/bench/paths.json.
//
//	make bench-paths COUNT=20 DURATION=1s
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
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/godwit-cni/godwit/test/lab"
)

const (
	// downTimeout bounds the removal of the lab.
	downTimeout = time.Minute
	wantNodes   = 3
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logr.Discard()) // the benchmark has its own
	klog.SetLogger(logr.Discard())
	c, err := options(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = measure(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-paths:", err)
		return 1
	}
	return 0
}

// config is what is to be measured.
type config struct {
	// rounds are how often each figure is measured on each way, workers how many connect at once.
	rounds, workers int
	// length is of one measurement.
	length time.Duration
	log    *slog.Logger
}

// options are what the run is asked for: COUNT and DURATION of the environment, and flags.
func options(args []string) (config, error) {
	c := config{rounds: 20, length: time.Second, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if v := os.Getenv("COUNT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return c, fmt.Errorf("COUNT=%s: want a number of rounds", v)
		}
		c.rounds = n
	}
	if v := os.Getenv("DURATION"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return c, fmt.Errorf("DURATION=%s: want the length of a measurement, such as 3s", v)
		}
		c.length = d
	}
	f := flag.NewFlagSet("bench-paths", flag.ContinueOnError)
	f.IntVar(&c.rounds, "rounds", c.rounds, "how often each figure is measured on each way")
	f.DurationVar(&c.length, "length", c.length, "how long each measurement takes")
	f.IntVar(&c.workers, "workers", 32, "how many connect at once")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	return c, c.validate()
}

func (c config) validate() error {
	var errs []error
	if c.rounds < 1 || c.workers < 1 || c.workers > 1000 {
		errs = append(errs, fmt.Errorf("%d rounds, %d workers: want at least 1, and 1 to 1000", c.rounds, c.workers))
	}
	if c.length < 100*time.Millisecond || c.length > time.Minute {
		errs = append(errs, fmt.Errorf("a measurement of %s: want 100ms to 1m", c.length))
	}
	return errors.Join(errs...)
}

func measure(ctx context.Context, c config) (err error) {
	dir, err := lab.Dir("default")
	if err != nil {
		return err
	}
	_, err = lab.Open(dir)
	stays := !errors.Is(err, lab.ErrNoLab)
	l, err := lab.Up(ctx, lab.Config{Log: c.log})
	if err != nil {
		return err
	}
	if !stays {
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
			defer cancel()
			err = errors.Join(err, l.Down(ctx))
		}()
	}
	if n := len(l.NodeNames()); n < wantNodes {
		return fmt.Errorf("the lab has %d nodes, want %d: each controller has a node to itself, so that one is replaced only where there is a third", n, wantNodes)
	}
	b := &bench{config: c, lab: l, figures: figures{}}
	if b.api, err = l.Client(); err != nil {
		return err
	}
	err = b.run(ctx)
	return errors.Join(err, b.report(os.Stdout, err)) // what was measured until an error is reported
}

// Command migration measures live migrations of one VM there and back under traffic, and in between the same migrations by two simpler means, for comparison.
//
//	make bench-migration COUNT=50
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

// downTimeout bounds the removal of the lab.
const downTimeout = time.Minute

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logr.Discard()) // the benchmark has its own
	klog.SetLogger(logr.Discard())
	if err := measure(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-migration:", err)
		return 1
	}
	return 0
}

// options are what the run is asked for: COUNT and STOP of the environment, and flags.
func options(args []string) (size, error) {
	s := size{count: 50}
	if v := os.Getenv("COUNT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return s, fmt.Errorf("COUNT=%s: want a number of migrations", v)
		}
		s.count = n
	}
	if v := os.Getenv("STOP"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return s, fmt.Errorf("STOP=%s: want a duration such as 500ms", v)
		}
		s.stop = d
	}
	f := flag.NewFlagSet("bench-migration", flag.ContinueOnError)
	f.IntVar(&s.count, "count", s.count, "migrations, there and back, and as many without the switch-over's signal: an even number")
	f.IntVar(&s.baselines, "baselines", 0, "migrations by each of the two simpler means; a fifth of --count by default")
	f.DurationVar(&s.stop, "stop", s.stop, "for how long QEMU does not let the VM run, such as 500ms; as long as it takes of itself if 0")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	s.defaults()
	return s, s.validate()
}

func measure(ctx context.Context, args []string) (err error) {
	want, err := options(args)
	if err != nil {
		return err
	}
	dir, err := lab.Dir("default")
	if err != nil {
		return err
	}
	_, err = lab.Open(dir)
	stays := !errors.Is(err, lab.ErrNoLab)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	l, err := lab.Up(ctx, lab.Config{Log: log})
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
	b, err := newBench(l, log)
	if err != nil {
		return err
	}
	err = b.run(ctx, want)
	return errors.Join(err, b.report(os.Stdout, err))
}

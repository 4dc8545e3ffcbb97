// Command drain measures what becomes of the VMs of a node that kubectl drains: how long each is interrupted, beside single migrations in the same run, and how
// long all of it takes.
//
//	make bench-drain VMS=20
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
	// maxVMs is what fits on one machine: 150 MB each.
	maxVMs = 40
	// fits is how many VMs a node has room for that has two processors: a launcher asks for a twentieth of them, and Godwit's pods for some.
	fits = 18
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logr.Discard()) // the benchmark has its own
	klog.SetLogger(logr.Discard())
	if err := measure(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-drain:", err)
		return 1
	}
	return 0
}

// size is how much is done.
type size struct {
	// vms are in the cluster, of which drained leave their node; the others look on. singles are migrations of one VM at a time before that: it goes there and back.
	vms, drained, singles int
}

// options are what the run is asked for: VMS of the environment, and flags.
func options(args []string) (size, error) {
	s := size{vms: 20}
	if v := os.Getenv("VMS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return s, fmt.Errorf("VMS=%s: want a number of VMs", v)
		}
		s.vms = n
	}
	f := flag.NewFlagSet("bench-drain", flag.ContinueOnError)
	f.IntVar(&s.vms, "vms", s.vms, "VMs in the cluster")
	f.IntVar(&s.drained, "drained", 0, fmt.Sprintf("VMs on the node that is drained; all by default, at most %d of them", fits))
	f.IntVar(&s.singles, "singles", 6, "migrations one at a time, to compare with: an even number")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if s.drained == 0 {
		s.drained = min(s.vms, fits)
	}
	var errs []error
	if s.drained < 1 || s.drained > s.vms {
		errs = append(errs, fmt.Errorf("%d VMs on the node that is drained: want 1 to %d", s.drained, s.vms))
	}
	if s.vms < 1 || s.vms > maxVMs {
		errs = append(errs, fmt.Errorf("%d VMs: want 1 to %d", s.vms, maxVMs))
	}
	if s.singles < 2 || s.singles%2 != 0 {
		errs = append(errs, fmt.Errorf("%d single migrations: want an even number, 2 or more: the VM goes there and back", s.singles))
	}
	return s, errors.Join(errs...)
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
	if err := b.run(ctx, want); err != nil {
		return err
	}
	return b.report(os.Stdout)
}

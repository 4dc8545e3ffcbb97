// Command cni measures how long Godwit takes to attach a pod, beside two floors in the same run: the plain bridge plugin, and OVN alone.
//
//	make bench-cni
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/godwit-cni/godwit/test/bench/table"
	"github.com/godwit-cni/godwit/test/lab"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logr.Discard()) // the benchmark has its own
	if err := measure(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-cni:", err)
		return 1
	}
	return 0
}

func measure(ctx context.Context) (err error) {
	dir, err := lab.Dir("default")
	if err != nil {
		return err
	}
	_, err = lab.Open(dir)
	stays := !errors.Is(err, lab.ErrNoLab)
	l, err := lab.Up(ctx, lab.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if !stays {
		defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	}
	b, err := newBench(l)
	if err != nil {
		return err
	}
	report := table.Report{Title: "Attaching a pod", Unit: "ms", Columns: []string{"n", "p50", "p90", "max", "all"}}
	for _, step := range []func(context.Context, *table.Report) error{b.bridge, b.alone, b.adds, b.pods, b.stages} {
		if err := step(ctx, &report); err != nil {
			return err
		}
	}
	report.Notes = append(report.Notes, b.notes...)
	if err := report.Print(os.Stdout); err != nil {
		return err
	}
	return report.Save("cni")
}

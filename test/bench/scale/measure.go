package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// config is what is to be measured.
type config struct {
	pods           counts
	nodes, samples int
	controller     string // a program, empty to build it
	keep           string // directory for logs, empty for none
	log            *slog.Logger
}

// counts is a flag: numbers with commas between.
type counts []int

func (c *counts) String() string { return fmt.Sprint(*c) }

// Set implements flag.Value.
func (c *counts) Set(s string) error {
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			return fmt.Errorf("%q: want numbers of pods with commas between", s)
		}
		*c = append(*c, n)
	}
	return nil
}

func measure(ctx context.Context, c config) (err error) {
	scratch, err := os.MkdirTemp("", "gws")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	p, err := central.Prepare(ctx, central.Config{Controller: c.controller, Logs: c.keep, Dir: scratch, Log: c.log})
	if err != nil {
		return err
	}
	r := report{load: []string{table.LoadAverage()}}
	for _, n := range c.pods {
		c.log.Info("what no controller can beat: the API server and the northbound database alone", "pods", n)
		f, err1 := within(ctx, p, func(cl *central.Cluster) (result, error) { return floors(ctx, cl, c, n) })
		c.log.Info("controller", "pods", n)
		m, err2 := within(ctx, p, func(cl *central.Cluster) (result, error) { return controlled(ctx, cl, c, n) })
		r.add(n, f, m) // what there is, if something failed
		r.load = append(r.load, table.LoadAverage())
		if err = errors.Join(err1, err2); err != nil {
			err = fmt.Errorf("%d pods: %w", n, err)
			break
		}
	}
	t := r.table()
	if err != nil {
		return errors.Join(err, t.Print(os.Stdout))
	}
	return errors.Join(t.Print(os.Stdout), t.Save("scale"))
}

// within runs f on a cluster of its own.
func within(ctx context.Context, p *central.Programs, f func(*central.Cluster) (result, error)) (result, error) {
	cl, err := p.Start(ctx)
	defer cl.Stop()
	if err != nil {
		return nil, err
	}
	return f(cl)
}

func seconds(d time.Duration) float64 { return d.Seconds() }

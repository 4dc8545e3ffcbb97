package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
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

// programs are what the bench runs.
type programs struct {
	source, kubernetes, controller, logs string
	ovn                                  *packages.Root
	spawn                                spawner
}

func measure(ctx context.Context, c config) (err error) {
	scratch, err := os.MkdirTemp("", "gwscale")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	p, err := prepare(ctx, c, scratch)
	if err != nil {
		return err
	}
	r := report{load: []string{loadavg()}}
	for _, n := range c.pods {
		c.log.Info("what no controller can beat: the API server and the northbound database alone", "pods", n)
		f, err1 := within(ctx, p, func(cl *cluster) (result, error) { return floors(ctx, cl, c, n) })
		c.log.Info("controller", "pods", n)
		m, err2 := within(ctx, p, func(cl *cluster) (result, error) { return controlled(ctx, cl, c, n) })
		r.add(n, f, m) // what there is, if something failed
		r.load = append(r.load, loadavg())
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

// prepare finds and builds the programs.
func prepare(ctx context.Context, c config, scratch string) (programs, error) {
	p := programs{spawn: newSpawner(), controller: c.controller, logs: c.keep}
	set, err := binaries.Ensure(ctx, c.log)
	if err != nil {
		return p, err
	}
	p.kubernetes = set.Kubernetes()
	if p.ovn, err = packages.Ensure(ctx, c.log); err != nil {
		return p, err
	}
	if p.source, err = source.Dir(); err != nil {
		return p, err
	}
	if p.logs == "" {
		p.logs = scratch
	}
	if p.controller != "" {
		return p, nil
	}
	p.controller = filepath.Join(scratch, "godwit-controller")
	build := exec.CommandContext(ctx, "go", "build", "-o", p.controller, "./cmd/godwit-controller")
	build.Dir = p.source
	if out, err := build.CombinedOutput(); err != nil {
		return p, fmt.Errorf("build the controller: %w: %s", err, out)
	}
	return p, nil
}

// within runs f on a cluster of its own.
func within(ctx context.Context, p programs, f func(*cluster) (result, error)) (result, error) {
	cl, err := startCluster(ctx, p)
	defer cl.stop()
	if err != nil {
		return nil, err
	}
	return f(cl)
}

// loadavg is the machine's load: others may use it too.
func loadavg() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

func seconds(d time.Duration) float64 { return d.Seconds() }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

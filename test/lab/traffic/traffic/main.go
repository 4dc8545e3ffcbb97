// Command traffic is in the lab's guests and its busybox image.
//
//	traffic serve [-echo 7 -sink 9 -source 19 -probe 7 -control 8007]     answers runs, and makes runs for its control port
//	              [-second PORT] [-desk PORT]                              echoes on another port too, TCP and UDP, and asks questions for others: see package echo
//	traffic run [-for 10s] SPEC                                            one run, its result on standard output; SPEC is JSON, a file with @ before it, or - for standard input
//
// See package traffic for specs and results.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const usage = "usage: traffic serve [FLAGS] | traffic run [-for DURATION] SPEC"

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "serve":
		err = serve(ctx, os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == "run":
		err = runSpec(ctx, os.Args[2:])
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	ports := map[string]*uint{}
	for name, port := range map[string]uint{"echo": 7, "sink": 9, "source": 19, "probe": 7, "control": traffic.ControlPort} {
		ports[name] = flags.Uint(name, port, "port of "+name)
	}
	second, desk := flags.Uint("second", 0, "another echo port; 0 for none"), flags.Uint("desk", 0, "port of the desk; 0 for none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for name, p := range ports {
		if *p == 0 || *p > 65535 {
			return fmt.Errorf("-%s %d: want a port, 1 to 65535", name, *p)
		}
	}
	s, err := traffic.Listen(ctx, traffic.ServerConfig{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Ports: traffic.Ports{
		Echo: uint16(*ports["echo"]), Sink: uint16(*ports["sink"]), Source: uint16(*ports["source"]), Probe: uint16(*ports["probe"]), Control: uint16(*ports["control"]),
	}})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Serve(ctx) })
	g.Go(func() error {
		return echo.Serve(ctx, echo.Config{TCP: address(*second), UDP: address(*second), Desk: address(*desk)})
	})
	return g.Wait()
}

// address is a port on all addresses; empty for none.
func address(port uint) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf(":%d", port)
}

// runSpec ends at the spec's length, or when it is interrupted: both print a result.
func runSpec(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	length := flags.Duration("for", 0, "how long; instead of the spec's length")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New(usage)
	}
	text, err := read(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("read the spec: %w", err)
	}
	var spec traffic.Spec
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		return fmt.Errorf("read the spec: %w", err)
	}
	if *length > 0 {
		spec.Length.Duration = *length
	}
	r, err := traffic.Begin(ctx, traffic.Place{}, spec)
	if err != nil {
		return err
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), traffic.MaxLength+time.Minute)
	defer cancel()
	result, err := r.Wait(end)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func read(spec string) (string, error) {
	var b []byte
	var err error
	switch path, isFile := strings.CutPrefix(spec, "@"); {
	case spec == "-":
		b, err = io.ReadAll(os.Stdin)
	case isFile:
		b, err = os.ReadFile(path)
	default:
		return spec, nil
	}
	return string(b), err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/echo"
)

const (
	// probeWithin is how long a target may take, all of them asked at once of an emulated processor.
	probeWithin = 3 * time.Second
	// insistEvery is between two targets of who insists. A new flow costs an emulated processor tens of milliseconds.
	insistEvery = 200 * time.Millisecond

	schemeSCTP = "sctp://"
)

// serveAll answers TCP, UDP and SCTP on ports of all addresses, as package echo has it, for ever.
func serveAll(ctx context.Context, name string, ports []string) error {
	with := func(text string, peer netip.Addr) string {
		if text == echo.AskName {
			text = name
		}
		return fmt.Sprintf("%s %s", peer, text)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, text := range ports {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return fmt.Errorf("port %q: %w", text, err)
		}
		g.Go(func() error { return echo.Serve(ctx, echo.Config{TCP: ":" + text, UDP: ":" + text, Name: name}) })
		g.Go(func() error { return serveSCTP(netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)), with) })
	}
	return g.Wait()
}

// probe asks all targets at once and prints a line for each, in their order.
func probe(ctx context.Context, targets []string) error {
	results, err := probeAll(ctx, targets)
	for _, r := range results {
		fmt.Println(r)
	}
	return err
}

// insist asks one target after the other, over and over, until ctx ends.
func insist(ctx context.Context, targets []string) error {
	for i := 0; ; i++ {
		if err := probe(ctx, []string{targets[i%len(targets)]}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(insistEvery):
		}
	}
}

func probeAll(ctx context.Context, targets []string) ([]echo.Result, error) {
	var others []string
	results := make([]echo.Result, len(targets))
	var g errgroup.Group
	for i, target := range targets {
		at, ok := strings.CutPrefix(target, schemeSCTP)
		if !ok {
			others = append(others, target)
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, probeWithin)
			defer cancel()
			start := time.Now()
			answer, err := askOnce(ctx, at)
			results[i] = echo.Result{Target: target, Took: time.Since(start), Answer: answer, Err: err}
			return nil
		})
	}
	rest := echo.Probe(ctx, probeWithin, others)
	_ = g.Wait() // failures are results
	for i := range results {
		if results[i].Target == "" {
			results[i], rest = rest[0], rest[1:]
		}
	}
	if len(rest) > 0 {
		return nil, errors.New("results are left over")
	}
	return results, nil
}

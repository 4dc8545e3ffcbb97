// Package demo shows what Godwit is for: a VM that moves from node to node under traffic, and back, and what the network did meanwhile, to the millisecond.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/timeline"
)

const (
	demoName = "godwit-demo"
	// timeout bounds a demo; it takes about half a minute.
	timeout = 10 * time.Minute
	// cleanupTimeout bounds the clean-up after it, which waits for nothing.
	cleanupTimeout = 20 * time.Second
	// warmUp is for how long nothing is looked at after traffic has begun: an emulated processor translates that code first. quiet is for how long the network is
	// then measured while nothing is done: what an interruption is to be compared with.
	warmUp, quiet = 4 * time.Second, 2 * time.Second
	// aftermath is for how long a migration that is over is still watched.
	aftermath = time.Second
	poll      = 50 * time.Millisecond
)

// Config of a demo.
type Config struct {
	Lab *lab.Lab
	Log *slog.Logger
	// Out gets the timelines.
	Out io.Writer
	// Picture is the file to draw the first migration in; empty for none. Its directory is made.
	Picture string
}

// Run makes a VM, holds TCP connections to it and from it, probes it, migrates it there and back, says what the network did, and removes the VM. Its error tells
// all that is not as it must be: a broken connection, another address, another port, options that were left behind.
func Run(ctx context.Context, c Config) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := passage.New(ctx, passage.Config{Lab: c.Lab, Log: c.Log, Name: demoName})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, s.Remove(ctx))
	}()
	if err := s.Set(ctx); err != nil {
		return err
	}
	return s.Serve(ctx, func(ctx context.Context) error { return play(ctx, c, s) })
}

// play is the demo itself.
func play(ctx context.Context, c Config, s *passage.Scene) error {
	before, err := s.State(ctx)
	if err != nil {
		return err
	}
	c.Log.Info("opening TCP connections to the VM and from it")
	held, err := s.Exchange(ctx, passage.Holding(timeout))
	if err != nil {
		return err
	}
	began := time.Now()
	var passages []*passage.Passage
	for i, to := range []string{s.Target, s.Source} {
		p, err := s.Pass(ctx, passage.Plan{Target: to, Address: i, WarmUp: warmUp, Quiet: quiet, Aftermath: aftermath})
		if err != nil {
			return err
		}
		passages = append(passages, p)
	}
	to, from, err := held.Stop(ctx)
	if err != nil {
		return err
	}
	c.Log.Debug("connections were held", "since", to.Result.Start, "first", passages[0].Stop, "second", passages[1].Stop)
	after, err := s.Settled(ctx, before)
	if err != nil {
		return err
	}
	all := connections{length: time.Since(began), to: to, from: from}
	if err := c.tell(s, passages, all); err != nil {
		return err
	}
	return c.judge(verdict{before: before, after: after, connections: all.all(), passages: passages})
}

// tell writes the timelines and draws the picture.
func (c Config) tell(s *passage.Scene, passages []*passage.Passage, held connections) error {
	for i, p := range passages {
		m := s.Timeline(p)
		m.Throughput, m.Connections = held.throughput(), held.counted()
		if err := m.WriteText(c.Out); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c.Out, p.Recorded()); err != nil {
			return err
		}
		if i == 0 && c.Picture != "" {
			if err := draw(m, c.Picture); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintln(c.Out, held)
	return err
}

// judge says what the demo comes to.
func (c Config) judge(v verdict) error {
	if problems := v.problems(); len(problems) > 0 {
		return fmt.Errorf("the demo has failed: %w", errors.Join(problems...))
	}
	_, err := fmt.Fprintf(c.Out, "The VM has the addresses and the port that it had before: %s\n", v.after)
	if c.Picture != "" {
		c.Log.Info("there is a picture of the first migration", "file", c.Picture)
	}
	return err
}

func draw(m *timeline.Migration, file string) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make a directory for the picture: %w", err)
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("draw the migration: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return m.WriteSVG(f)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

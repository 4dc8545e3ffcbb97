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

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// timeout bounds a demo; it takes about half a minute.
	timeout = 5 * time.Minute
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
	s, err := newScene(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, s.remove(ctx))
	}()
	if err := s.set(ctx); err != nil {
		return err
	}
	server, err := traffic.Listen(ctx, traffic.ServerConfig{Place: s.place, Log: c.Log})
	if err != nil {
		return fmt.Errorf("serve the VM's traffic in pod %s: %w", peerName, err)
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(serving)
	g.Go(func() error { return server.Serve(gctx) })
	err = s.play(gctx)
	stop()
	return errors.Join(err, g.Wait())
}

// play is the demo itself.
func (s *scene) play(ctx context.Context) error {
	before, err := s.state(ctx)
	if err != nil {
		return err
	}
	s.Log.Info("opening TCP connections to the VM and from it")
	held, err := newExchange(ctx, s.guest, s.peer, holding())
	if err != nil {
		return err
	}
	began := time.Now()
	var passages []*passage
	for i, to := range []string{s.target, s.source} {
		p, err := s.pass(ctx, to, i)
		if err != nil {
			return err
		}
		passages = append(passages, p)
	}
	to, from, err := held.stop(ctx)
	if err != nil {
		return err
	}
	s.Log.Debug("connections were held", "since", to.result.Start, "first", passages[0].stop, "second", passages[1].stop)
	c := connections{length: time.Since(began), to: to, from: from}
	after, err := s.settled(ctx, before)
	if err != nil {
		return err
	}
	if err := s.tell(passages, c); err != nil {
		return err
	}
	return s.judge(verdict{before: before, after: after, connections: c.all(), passages: passages})
}

// tell writes the timelines and draws the picture.
func (s *scene) tell(passages []*passage, c connections) error {
	for i, p := range passages {
		m := p.timeline(s, c)
		if err := m.WriteText(s.Out); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(s.Out, p.recorded()); err != nil {
			return err
		}
		if i == 0 && s.Picture != "" {
			if err := draw(m, s.Picture); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintln(s.Out, c)
	return err
}

// judge says what the demo comes to.
func (s *scene) judge(v verdict) error {
	if problems := v.problems(); len(problems) > 0 {
		return fmt.Errorf("the demo has failed: %w", errors.Join(problems...))
	}
	_, err := fmt.Fprintf(s.Out, "The VM has the addresses and the port that it had before: %s\n", v.after)
	if s.Picture != "" {
		s.Log.Info("there is a picture of the first migration", "file", s.Picture)
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

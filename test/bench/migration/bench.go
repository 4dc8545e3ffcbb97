package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/bench/scrape"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

const (
	// runTimeout bounds all migrations, passTimeout one with its traffic.
	runTimeout, passTimeout = 80 * time.Minute, 2 * time.Minute
	// cleanupTimeout bounds the clean-up, which waits for nothing.
	cleanupTimeout = 20 * time.Second
	warmUp, quiet  = 3 * time.Second, time.Second
	aftermath      = 500 * time.Millisecond
)

type bench struct {
	lab     *lab.Lab
	api     kubernetes.Interface
	log     *slog.Logger
	samples []sample
	// mark is when the last migration was done with, sent how many transactions the controllers had sent by then.
	mark time.Time
	sent float64
}

func newBench(l *lab.Lab, log *slog.Logger) (*bench, error) {
	api, err := l.Client()
	if err != nil {
		return nil, err
	}
	return &bench{lab: l, api: api, log: log}, nil
}

// run makes the migrations. What was measured until an error is kept.
func (b *bench) run(ctx context.Context, want size) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	forbid, err := b.allowBaselines(ctx)
	defer func() { err = errors.Join(err, after(ctx, forbid)) }()
	if err != nil {
		return err
	}
	s, err := passage.New(ctx, passage.Config{Lab: b.lab, Log: b.log, Name: "bench-migration"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, after(ctx, s.Remove)) }()
	if err := s.Set(ctx); err != nil {
		return err
	}
	l, err := keep(ctx, s)
	if err != nil {
		return err
	}
	defer l.close()
	return s.Serve(ctx, func(ctx context.Context) error { return b.all(ctx, s, l, want) })
}

// after cleans up, also when ctx has ended.
func after(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return f(ctx)
}

func (b *bench) all(ctx context.Context, s *passage.Scene, l *ledger, want size) error {
	before, err := s.State(ctx)
	if err != nil {
		return err
	}
	if err := b.count(ctx); err != nil {
		return err
	}
	for i, kind := range want.pairs() {
		if err := setKind(ctx, s, kind); err != nil {
			return err
		}
		for _, to := range []string{s.Target, s.Source} {
			got, err := b.pass(ctx, s, l, move{kind: kind, to: to, address: i, stop: want.stop})
			if err != nil {
				return fmt.Errorf("migration %d (%s): %w", len(b.samples)+1, title(kind), err)
			}
			b.samples = append(b.samples, got)
			b.log.Info("measured", "migration", len(b.samples), "kind", title(kind), "to", to, "stop", ms(got.Stop), "unanswered", ms(got.Unanswered),
				"lost", got.LostTo+got.LostFrom, "by", got.ActivatedBy, "broken", got.Broken, "writes", got.Writes)
			if kind == "" && got.Broken > 0 {
				b.log.Warn("connections broke", "migration", len(b.samples), "which", got.Breaks)
			}
		}
	}
	now, err := s.Settled(ctx, before)
	if err != nil {
		return err
	}
	return errors.Join(before.Changes(now)...)
}

// count ends what belongs to a migration: what is written from now on is the next one's.
func (b *bench) count(ctx context.Context) (err error) {
	b.mark = time.Now()
	b.sent, err = scrape.Transactions(ctx, b.api)
	return err
}

// move is one migration that is to be made.
type move struct {
	kind    migration.Baseline
	to      string
	address int
	stop    time.Duration
}

// pass makes one migration, with connections of its own.
func (b *bench) pass(ctx context.Context, s *passage.Scene, l *ledger, m move) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	held, err := s.Exchange(ctx, passage.Holding(passTimeout))
	if err != nil {
		return sample{}, err
	}
	p, err := s.Pass(ctx, passage.Plan{Target: m.to, Address: m.address, WarmUp: warmUp, Quiet: quiet, Aftermath: aftermath, Stop: m.stop})
	if err != nil {
		return sample{}, err
	}
	to, from, err := held.Stop(ctx)
	if err != nil {
		return sample{}, err
	}
	began, sent := b.mark, b.sent
	if err := b.count(ctx); err != nil {
		return sample{}, err
	}
	n, err := l.since(began)
	if err != nil {
		return sample{}, err
	}
	got := measured(p, n)
	got.Kind, got.Transactions = m.kind, int(b.sent-sent)
	got.connections(to, from)
	return got, n.obeyed(m.kind)
}

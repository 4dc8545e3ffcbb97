package ovn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// maxBatch bounds the requests that one transaction carries, so that a large restart does not become one enormous message.
const maxBatch = 256

// gatherWindow is the shortest time between two transactions: northd recomputes for each of them, and on 23.03 it recomputes everything. A change that comes after
// a quiet moment is committed at once; changes of a burst share transactions.
const gatherWindow = 40 * time.Millisecond

// Change is one intention about one row. It reads the live copy when its turn to commit has come and returns what is left to do: nothing, when the
// database already is as wanted.
type Change func(context.Context, *NB) ([]step, error)

// step is one operation of a transaction.
type step struct {
	op ovsdb.Operation
	// fails is, for a guard, the error that its failure means.
	fails error
	// settled, if given, is told in the commit loop what has become of it, before anything else is committed. An error that is refused says that it changed nothing.
	settled func(ovsdb.OperationResult, error)
}

type request struct {
	changes []Change
	done    chan error
}

// Apply commits changes in one transaction, together with what other callers submit at the same time, and returns when they are committed. A failure of
// another caller's change is not this caller's.
func (nb *NB) Apply(ctx context.Context, changes ...Change) error {
	return nb.submit(ctx, nb.queue, changes)
}

// ApplyNow is Apply for what a migration waits for: it is committed at once, even when a burst of others keeps its distance from the transaction before.
func (nb *NB) ApplyNow(ctx context.Context, changes ...Change) error {
	return nb.submit(ctx, nb.urgent, changes)
}

func (nb *NB) submit(ctx context.Context, queue chan<- *request, changes []Change) error {
	r := &request{changes: changes, done: make(chan error, 1)}
	select {
	case queue <- r:
	case <-ctx.Done():
		return fmt.Errorf("queue a northbound change: %w", context.Cause(ctx))
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for a northbound change: %w", context.Cause(ctx))
	}
}

// Run commits what Apply submits, and keeps the connection alive, until ctx ends.
func (nb *NB) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return nb.commitLoop(ctx) })
	g.Go(func() error { return nb.probe(ctx) })
	return g.Wait()
}

func (nb *NB) commitLoop(ctx context.Context) error {
	quiet := time.NewTimer(0) // fires when a transaction may be sent again
	defer quiet.Stop()
	var first *request // waits for quiet, and others gather behind it
	for {
		queue, window := nb.queue, (<-chan time.Time)(nil)
		if first != nil {
			queue, window = nil, quiet.C
		}
		select {
		case <-ctx.Done():
			if first != nil {
				first.done <- context.Cause(ctx)
			}
			return nil
		case r := <-nb.urgent:
			nb.commit(ctx, gather(nb.urgent, r))
		case first = <-queue:
		case <-window:
			sent := nb.commit(ctx, gather(nb.queue, first))
			first = nil
			if sent {
				quiet.Reset(gatherWindow)
			} else {
				quiet.Reset(0) // what changes nothing keeps nobody waiting
			}
		}
	}
}

// gather takes first and whatever else is waiting.
func gather(queue <-chan *request, first *request) []*request {
	batch := []*request{first}
	for len(batch) < maxBatch {
		select {
		case r := <-queue:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// commit tries all requests in one transaction. When the database refuses it, each request is committed on its own, so that the one that is at fault is the
// only one that fails. It reports whether there was anything to send.
func (nb *NB) commit(ctx context.Context, batch []*request) (sent bool) {
	var pending []*request
	var steps []step
	nb.begin()
	for _, r := range batch {
		s, err := nb.steps(ctx, r)
		switch {
		case err != nil, len(s) == 0:
			r.done <- err
		default:
			pending = append(pending, r)
			steps = append(steps, s...)
		}
	}
	if len(pending) == 0 {
		return false
	}
	results, err := nb.transact(ctx, steps, len(pending))
	if len(pending) == 1 || err == nil || !errors.As(err, new(refused)) {
		settle(steps, results, err)
		for _, r := range pending {
			r.done <- err
		}
		return true
	}
	settle(steps, nil, err)
	for _, r := range pending {
		nb.begin()
		s, err := nb.steps(ctx, r)
		if err == nil && len(s) > 0 {
			results, err = nb.transact(ctx, s, 1)
			settle(s, results, err)
		}
		r.done <- err
	}
	return true
}

// begin starts another transaction.
func (nb *NB) begin() {
	nb.transaction++
	nb.created = map[ident.PortName]*created{}
}

// settle tells the steps of a transaction what has become of it.
func settle(steps []step, results []ovsdb.OperationResult, err error) {
	for i, s := range steps {
		if s.settled == nil {
			continue
		}
		var r ovsdb.OperationResult
		if err == nil && i < len(results) {
			r = results[i]
		}
		s.settled(r, err)
	}
}

func (nb *NB) steps(ctx context.Context, r *request) ([]step, error) {
	var all []step
	for _, c := range r.changes {
		s, err := c(ctx, nb)
		if err != nil {
			settle(all, nil, refused{err}) // nothing of it is sent
			return nil, err
		}
		all = append(all, s...)
	}
	return all, nil
}

// refused marks an error with which nothing has been changed: one that the database gave, as opposed to one of reaching it.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

func (nb *NB) transact(ctx context.Context, steps []step, requests int) ([]ovsdb.OperationResult, error) {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	ops := make([]ovsdb.Operation, len(steps))
	for i, s := range steps {
		ops[i] = s.op
	}
	nb.log.Debug("northbound transaction", "requests", requests, "operations", operations(ops))
	start := time.Now()
	results, err := nb.ovsdb.Transact(ctx, ops...)
	nb.metrics.observe(requests, time.Since(start))
	if err != nil {
		return nil, fmt.Errorf("northbound transaction of %d operations: %w", len(ops), err)
	}
	for i, r := range results {
		if r.Error == "" {
			continue
		}
		if i < len(steps) && steps[i].fails != nil {
			return nil, refused{steps[i].fails}
		}
		if r.Error == "constraint violation" { // another writer was first to create a row of that name
			return nil, refused{fmt.Errorf("northbound transaction: %w: %s", ErrConflict, r.Details)}
		}
		return nil, refused{fmt.Errorf("northbound transaction: %s: %s", r.Error, r.Details)}
	}
	return results, nil
}

// operations is what is logged of a transaction: what is done with which rows, without their contents.
type operations []ovsdb.Operation

// LogValue implements slog.LogValuer.
func (ops operations) LogValue() slog.Value {
	said := make([]string, len(ops))
	for i, op := range ops {
		said[i] = strings.TrimSpace(fmt.Sprintf("%s %s %s", op.Op, op.Table, which(op)))
	}
	return slog.AnyValue(said)
}

// which names the row of an operation as well as it can.
func which(op ovsdb.Operation) string {
	if name, ok := op.Row["name"].(string); ok {
		return name
	}
	if len(op.Where) > 0 {
		return fmt.Sprint(op.Where[0].Value)
	}
	return ""
}

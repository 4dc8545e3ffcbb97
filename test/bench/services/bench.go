package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

const (
	// patience bounds every wait for many things, and for one thing that northd does while there are many.
	patience = 15 * time.Minute
	// rest is how long nothing is done before and after what is measured.
	rest = 300 * time.Millisecond
)

// bench is what the parts of the measurement share.
type bench struct {
	config
	cl *central.Cluster
	// counted is the northbound endpoint of the controllers, behind the ledger.
	counted string
	ledger  *central.Ledger
	rows    *rows
	leader  *central.Replica
}

func measure(ctx context.Context, c config) (err error) {
	dir, err := os.MkdirTemp("", "gws")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{config: c, ledger: &central.Ledger{About: func(t string) bool { return t == "Load_Balancer" }}, counted: "unix:" + filepath.Join(dir, "counted.sock"), rows: newRows()}
	programs, err := central.Prepare(ctx, central.Config{Controller: c.controller, Logs: c.keep, Dir: dir, Log: c.log})
	if err != nil {
		return err
	}
	b.cl, err = programs.Start(ctx)
	defer b.cl.Stop()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.ledger.Serve(ctx, b.counted, b.cl.NB) })
	r := &report{config: c}
	g.Go(func() error {
		defer cancel()
		closeRows, err := b.rows.watch(ctx, b.cl)
		if err != nil {
			return err
		}
		defer closeRows()
		err = b.run(ctx, r)
		b.cl.Stop() // the controllers first, then what they are connected to
		return err
	})
	err = g.Wait()
	t := r.table()
	if err != nil {
		return errors.Join(err, t.Print(os.Stdout)) // what there is
	}
	return errors.Join(t.Print(os.Stdout), t.Save("services"))
}

// run measures with a tenth of the Services, then with all and more switches.
func (b *bench) run(ctx context.Context, r *report) error {
	if err := b.begin(ctx); err != nil {
		return err
	}
	few := b.services / 10
	for _, stage := range []struct{ from, to, subnets int }{{0, few, 0}, {few, b.services, b.subnets}} {
		out := r.column(fmt.Sprintf("%d Services, %d Subnets", stage.to, stage.subnets+1))
		b.log.Info("adding Services", "up to", stage.to, "load", table.LoadAverage())
		for i := range stage.subnets {
			if err := b.cl.API.Create(ctx, newSubnet(i)); err != nil {
				return err
			}
		}
		if err := b.add(ctx, out, central.Range{From: stage.from, To: stage.to}); err != nil {
			return err
		}
		b.log.Info("endpoints that go and come, pods that come", "load", table.LoadAverage())
		if err := b.changes(ctx, out, stage.to); err != nil {
			return err
		}
	}
	return nil
}

// begin starts a controller, and adds nodes, a namespace and addresses for Services.
func (b *bench) begin(ctx context.Context) error {
	var err error
	if b.leader, err = b.cl.Controller(ctx, "first", b.counted); err != nil {
		return err
	}
	if err := errors.Join(b.cl.API.Create(ctx, addressRange()), b.cl.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})); err != nil {
		return err
	}
	if err := b.cl.AddNodes(ctx, b.nodes); err != nil {
		return err
	}
	return b.leader.AwaitReady(ctx)
}

// add makes Services, each with its endpoints, and waits until all have their rows, and until northd has told the southbound database.
func (b *bench) add(ctx context.Context, out result, which central.Range) error {
	before, start := b.ledger.Read(), time.Now()
	err := central.Each(ctx, which, func(ctx context.Context, i int) error {
		return errors.Join(b.cl.API.Create(ctx, newService(i)), b.cl.API.Create(ctx, b.newSlice(i)))
	})
	if err != nil {
		return err
	}
	out[created] = time.Since(start).Seconds()
	err = b.await(ctx, fmt.Sprintf("%d Services have all of their endpoints", which.To), func() bool { return b.rows.whole(b.endpoints) >= which.To })
	if err != nil {
		return fmt.Errorf("%w: %d have", err, b.rows.whole(b.endpoints))
	}
	out[served] = time.Since(start).Seconds()
	did := b.ledger.Read().Since(before)
	out[servedTransactions] = 100 * float64(did.Transactions) / float64(which.To-which.From)
	behind, err := b.northd(ctx)
	out[northdBehind] = behind.Seconds()
	return err
}

// northd waits until northd has told the southbound database of everything.
func (b *bench) northd(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := b.cl.Command(ctx, "ovn-nbctl", "--db="+b.cl.NB, "--wait=sb", fmt.Sprintf("--timeout=%d", int(patience.Seconds())), "sync")
	return time.Since(start), err
}

// await waits for something that the controller does.
func (b *bench) await(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return central.Poll(ctx, what, func() (bool, error) {
		if done() {
			return true, nil
		}
		return false, b.leader.Running()
	})
}

// pause lets what is under way come to rest.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(rest):
		return nil
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/rollout"
	"github.com/godwit-cni/godwit/test/bench/table"
	"github.com/godwit-cni/godwit/test/lab"
)

const (
	// runTimeout bounds a run, settleTimeout the wait for pods, and for load balancers to be written or gone.
	runTimeout, settleTimeout = time.Hour, 2 * time.Minute
	poll                      = 200 * time.Millisecond
)

type bench struct {
	config
	lab     *lab.Lab
	api     kubernetes.Interface
	figures figures
	// failed are connections that did not come about.
	failed map[way]int
	load   []string
}

// run measures all. The rounds where no Services are served are between the others, so that whatever changes while the benchmark runs changes for both.
func (b *bench) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	b.failed = map[way]int{}
	w := &world{bench: b}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		err = errors.Join(err, w.remove(ctx))
	}()
	if err := w.make(ctx); err != nil {
		return err
	}
	half := (b.rounds + 1) / 2
	if err := b.served(ctx, w, 0, half); err != nil {
		return err
	}
	if err := b.unserved(ctx, w); err != nil {
		return err
	}
	return b.served(ctx, w, half, b.rounds)
}

// served measures rounds with Services.
func (b *bench) served(ctx context.Context, w *world, from, to int) error {
	if err := w.balanced(ctx); err != nil {
		return err
	}
	for i := from; i < to; i++ {
		ways := []way{toPod, toClusterIP}
		if i%2 == 1 { // what is first may have something from it
			ways = []way{toClusterIP, toPod}
		}
		if err := b.round(ctx, w, ways...); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	return nil
}

// unserved measures all rounds without Services, and lets them be served again.
func (b *bench) unserved(ctx context.Context, w *world) (err error) {
	b.log.Info("restarting the controllers with --services=false")
	undo, err := rollout.WithFlag(ctx, b.api, "--services=false")
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		b.log.Info("restarting the controllers with the flags that they had")
		err = errors.Join(err, undo(ctx))
		if err == nil {
			err = rollout.Await(ctx, b.api)
		}
	}()
	if err != nil {
		return err
	}
	if err := w.bare(ctx); err != nil {
		return err
	}
	for i := range b.rounds {
		if err := b.round(ctx, w, withoutServices); err != nil {
			return fmt.Errorf("round %d without Services: %w", i+1, err)
		}
	}
	return nil
}

// round measures everything once on each way.
func (b *bench) round(ctx context.Context, w *world, ways ...way) error {
	for _, s := range w.servers {
		for _, k := range kinds() {
			for _, way := range ways {
				c := client{namespace: w.client, server: s.pod, ports: usualPorts(), length: b.length, workers: b.workers}
				if way == toClusterIP {
					c.server = s.service
				}
				if err := b.one(ctx, c, sample{s.path, way}, k); err != nil {
					return fmt.Errorf("%s, %s: %w", s.path, way, err)
				}
			}
		}
	}
	b.load = append(b.load, table.LoadAverage())
	return nil
}

// one is one measurement, beside what ovs-vswitchd used of processors meanwhile.
func (b *bench) one(ctx context.Context, c client, s sample, k kind) error {
	before, err := b.forwarding(ctx)
	if err != nil {
		return err
	}
	got, err := k.measure(ctx, c)
	if err != nil {
		return err
	}
	after, err := b.forwarding(ctx)
	if err != nil {
		return err
	}
	if got.failed > 0 {
		b.log.Warn("connections failed", "path", string(s.path), "way", string(s.way), "number", got.failed)
	}
	b.failed[s.way] += got.failed
	attrs := []any{"path", string(s.path), "way", string(s.way)}
	for m, v := range k.sum(got, after-before) {
		b.figures.add(s, m, v)
		attrs = append(attrs, string(m), v)
	}
	b.log.Info("measured", attrs...)
	return nil
}

// forwarding is what the two nodes' ovs-vswitchd have used of processors so far.
func (b *bench) forwarding(ctx context.Context) (sum time.Duration, err error) {
	for _, node := range []string{clientNode, otherNode} {
		stat, err := b.lab.Exec(ctx, node, "sh", "-c", "cat /proc/$(cat /run/openvswitch/ovs-vswitchd.pid)/stat")
		if err != nil {
			return 0, err
		}
		cpu, err := central.CPU(stat)
		if err != nil {
			return 0, fmt.Errorf("read the use of ovs-vswitchd on %s: %w", node, err)
		}
		sum += cpu
	}
	return sum, nil
}

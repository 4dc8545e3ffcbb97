package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// look is how often it is seen who migrates: a target pod takes a second or more to start, and QEMU another to copy.
const look = 250 * time.Millisecond

// probes are of VMs that migrate, each while it does: an emulated guest answers fifty probes a second with a tenth of a processor, and twenty of them with both.
type probes struct {
	bench *bench
	runs  map[types.UID]*traffic.Run
	// over is when a migration was first seen to have ended, of the probes that still run.
	over map[types.UID]time.Time
	// seen is of those that have ended, by the migration's UID.
	seen map[types.UID]*traffic.Probes
}

// begin probes whoever migrates from now on. end ends that, when the last loss that belongs to a migration has been seen.
func (b *bench) begin(ctx context.Context) (end func() error) {
	b.probes = &probes{bench: b, runs: map[types.UID]*traffic.Run{}, over: map[types.UID]time.Time{}, seen: map[types.UID]*traffic.Probes{}}
	watching, stop := context.WithCancel(ctx)
	g := errgroup.Group{}
	g.Go(func() error { return b.probes.watch(watching, ctx) })
	return func() error {
		stop()
		return g.Wait()
	}
}

// watch probes until the first context ends; the probes themselves live in the second.
func (p *probes) watch(watching, ctx context.Context) error {
	for pause(watching, look) == nil {
		if err := p.pass(ctx); err != nil {
			return err
		}
	}
	if err := pause(ctx, 2*lateLoss); err != nil {
		return err
	}
	var errs []error
	for uid := range p.runs {
		errs = append(errs, p.stop(ctx, uid))
	}
	return errors.Join(errs...)
}

// pass begins and ends what is due.
func (p *probes) pass(ctx context.Context) error {
	var list kubevirtv1.VirtualMachineInstanceMigrationList
	if err := p.bench.api.List(ctx, &list, client.InNamespace(p.bench.namespace)); err != nil {
		return fmt.Errorf("list migrations: %w", err)
	}
	for i := range list.Items {
		m := &list.Items[i]
		over, probed := p.over[m.UID], p.runs[m.UID] != nil
		switch {
		case !m.IsFinal() && !probed:
			if err := p.start(ctx, m); err != nil {
				return err
			}
		case m.IsFinal() && probed && over.IsZero():
			p.over[m.UID] = time.Now()
		case probed && !over.IsZero() && time.Since(over) > 2*lateLoss:
			if err := p.stop(ctx, m.UID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *probes) start(ctx context.Context, m *kubevirtv1.VirtualMachineInstanceMigration) error {
	for _, g := range p.bench.guests {
		if g.Name != m.Spec.VMIName {
			continue
		}
		run, err := traffic.Begin(ctx, p.bench.place, traffic.Spec{Peers: g.ips[:1], Probe: traffic.Probing{Interval: traffic.Duration{Duration: interval}}})
		if err != nil {
			return err
		}
		p.runs[m.UID] = run
		return nil
	}
	return fmt.Errorf("migration %s/%s is of VM %s, which is not among those of the benchmark", m.Namespace, m.Name, m.Spec.VMIName)
}

func (p *probes) stop(ctx context.Context, uid types.UID) error {
	result, err := p.runs[uid].Stop(ctx)
	if err != nil {
		return err
	}
	delete(p.runs, uid)
	delete(p.over, uid)
	p.seen[uid] = &result.Probes[0]
	return nil
}

// measure looks at the migration's probes.
func (p *probes) measure(m *move) error {
	seen := p.seen[m.uid]
	if seen == nil || seen.Start.After(m.stopped.Stopped) {
		return fmt.Errorf("VM %s was not probed before QEMU stopped it: nothing can be said of its interruption", m.VM)
	}
	m.measure(seen)
	return nil
}

package main

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// sampled are the figures of single changes.
type sampled struct {
	// nb are the times from the request to the API server until the northbound database has it, sb those from then on until the southbound one has, in ms.
	nb, sb []float64
	// What the controller asked of the database.
	transactions, operations, bytes []float64
}

// changes measures endpoints that go and come, and pods that come, one at a time, where there are so many Services.
func (b *bench) changes(ctx context.Context, out result, services int) error {
	controller, err := b.leader.Usage()
	if err != nil {
		return err
	}
	northd, err := b.cl.Northd.Usage()
	if err != nil {
		return err
	}
	var ends, pods sampled
	for i := range b.samples {
		if err := b.endpointChanges(ctx, &ends, i*services/b.samples); err != nil {
			return fmt.Errorf("endpoints of Service %s: %w", serviceName(i), err)
		}
	}
	n := float64(2 * b.samples)
	controllerAfter, err := b.leader.Usage()
	if err != nil {
		return err
	}
	northdAfter, err := b.cl.Northd.Usage()
	if err != nil {
		return err
	}
	out[controllerCPU], out[northdCPU] = table.Millis(controllerAfter.CPU-controller.CPU)/n, table.Millis(northdAfter.CPU-northd.CPU)/n
	out[rss] = controllerAfter.RSS
	for i := range b.samples {
		if err := b.podComes(ctx, &pods, fmt.Sprintf("p%d-%d", services, i)); err != nil {
			return err
		}
	}
	out.endpoints(&ends)
	out.pods(&pods)
	return nil
}

// endpointChanges has one endpoint of a Service become unready, and ready again.
func (b *bench) endpointChanges(ctx context.Context, s *sampled, service int) error {
	for _, isReady := range []bool{false, true} {
		slice := b.newSlice(service)
		changed := slice.DeepCopy()
		slice.Endpoints[0].Conditions.Ready, changed.Endpoints[0].Conditions.Ready = new(!isReady), new(isReady)
		want := b.endpoints
		if !isReady {
			want--
		}
		err := b.sample(ctx, s, func() error { return b.cl.API.Patch(ctx, changed, client.MergeFrom(slice)) }, func() bool { return b.rows.endpoints(rowName(service)) == want })
		if err != nil {
			return err
		}
	}
	return nil
}

// podComes has a pod come to a node.
func (b *bench) podComes(ctx context.Context, s *sampled, name string) error {
	pod := central.NewPod(namespace, name, central.NodeName(0), "none")
	row := string(ident.PodPort(namespace, name, ident.DefaultNetwork))
	return b.sample(ctx, s, func() error { return b.cl.API.Create(ctx, pod) }, func() bool { return b.rows.hasPort(row) })
}

// sample measures one change of an object, until both databases have it.
func (b *bench) sample(ctx context.Context, s *sampled, change func() error, done func() bool) error {
	if err := pause(ctx); err != nil {
		return err
	}
	before, start := b.ledger.Read(), time.Now()
	if err := change(); err != nil {
		return err
	}
	if err := b.await(ctx, "the northbound database has it", done); err != nil {
		return err
	}
	s.nb = append(s.nb, table.Millis(time.Since(start)))
	behind, err := b.northd(ctx)
	if err != nil {
		return err
	}
	s.sb = append(s.sb, table.Millis(behind))
	if err := pause(ctx); err != nil { // whatever else the controller does
		return err
	}
	did := b.ledger.Read().Since(before)
	s.transactions, s.operations, s.bytes = append(s.transactions, float64(did.Transactions)), append(s.operations, float64(did.Operations)), append(s.bytes, float64(did.Bytes))
	return nil
}

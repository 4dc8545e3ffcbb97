package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/bench/central"
	"github.com/godwit-cni/godwit/test/bench/table"
)

// controlled measures the controller: n pods at once, then single ones, then its restarts.
func controlled(ctx context.Context, cl *central.Cluster, c config, n int) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	w, stop, err := watch(ctx, cl)
	if err != nil {
		return nil, err
	}
	defer stop()
	first, err := cl.Controller(ctx, fmt.Sprintf("%d-first", n), cl.NB)
	if err != nil {
		return nil, err
	}
	if err := addNodes(ctx, cl, c.nodes, "bench", "single", "restart"); err != nil {
		return nil, err
	}
	if err := first.AwaitReady(ctx); err != nil {
		return nil, err
	}
	if err := w.awaitNodes(ctx, c.nodes); err != nil {
		return nil, err
	}
	r := result{}
	for _, part := range []func() error{
		func() error { return burst(ctx, cl, task{c, w, n, first}, r) },
		func() error { return singles(ctx, cl, task{c, w, n, first}, r) },
		func() error { return restarts(ctx, cl, task{c, w, n, first}, r) },
	} {
		if err := part(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// task is what the parts of a measurement share.
type task struct {
	config
	w     *watcher
	n     int
	first *central.Replica
}

// meter is what has been used so far.
type meter struct {
	at                 time.Time
	controller, northd central.Usage
	transactions       float64
	writes             map[string]float64
}

func read(ctx context.Context, cl *central.Cluster, leader *central.Replica) (meter, error) {
	m := meter{at: time.Now()}
	var err error
	if m.controller, err = leader.Usage(); err != nil {
		return m, err
	}
	if m.northd, err = cl.Northd.Usage(); err != nil {
		return m, err
	}
	if m.transactions, err = leader.Metric(ctx, "godwit_nb_transaction_duration_seconds_count"); err != nil {
		return m, err
	}
	m.writes, err = cl.Writes(ctx)
	return m, err
}

// burst creates all pods as fast as the API server takes them and waits until each has its identity and its row.
func burst(ctx context.Context, cl *central.Cluster, u task, r result) error {
	before, err := read(ctx, cl, u.first)
	if err != nil {
		return err
	}
	busy, err := readMachine()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := addPods(ctx, cl, "bench", u.n, u.nodes); err != nil {
		return err
	}
	r[created] = seconds(time.Since(start))
	err = central.Poll(ctx, fmt.Sprintf("%d pods are served", u.n), func() (bool, error) { return u.w.counts().served == u.n, nil })
	if err != nil {
		return fmt.Errorf("%w: %+v", err, u.w.counts())
	}
	busyAfter, err := readMachine()
	if err != nil {
		return err
	}
	r[servedOthers] = busyAfter.others(busy)
	r[served] = seconds(u.w.lastServed("bench").Sub(start))
	u.log.Info("all pods are served", "seconds", r[served], "created in", r[created])
	time.Sleep(time.Second) // the last status writes
	after, err := read(ctx, cl, u.first)
	if err != nil {
		return err
	}
	n := float64(u.n)
	r[transactions] = after.transactions - before.transactions
	r[perPod] = r[transactions] / n
	for resource, v := range after.writes {
		d := v - before.writes[resource]
		switch resource {
		case "leases":
		case "pods":
			r[podWrites] = d / n
			r[allWrites] += d / n
		default:
			r[allWrites] += d / n
		}
		u.log.Debug("writes", "resource", resource, "n", d)
	}
	r[cpu] = seconds(after.controller.CPU - before.controller.CPU)
	r[rss], r[peak] = after.controller.RSS, after.controller.Peak
	r[northdCPU] = seconds(after.northd.CPU - before.northd.CPU)
	err = central.Poll(ctx, fmt.Sprintf("%d pods have bindings", u.n), func() (bool, error) { return u.w.counts().bindings == u.n, nil })
	if err != nil {
		return err
	}
	r[bound] = seconds(u.w.last.Sub(start))
	return nil
}

// singles creates one pod at a time: how long the controller needs, and northd after it.
func singles(ctx context.Context, cl *central.Cluster, u task, r result) error {
	var toServed, toBinding []float64
	for i := range u.samples {
		time.Sleep(300 * time.Millisecond) // everything is at rest
		start := time.Now()
		if err := cl.API.Create(ctx, newPod("single", podName(i), central.NodeName(i%u.nodes))); err != nil {
			return err
		}
		var s seen
		err := central.Poll(ctx, "one pod more is bound", func() (bool, error) {
			s = u.w.of("single", podName(i))
			return !s.served().IsZero() && !s.binding.IsZero(), nil
		})
		if err != nil {
			return err
		}
		toServed = append(toServed, table.Millis(s.served().Sub(start)))
		toBinding = append(toBinding, table.Millis(s.binding.Sub(s.row)))
	}
	slices.Sort(toServed)
	slices.Sort(toBinding)
	if n := len(toServed); n > 0 {
		r[single50], r[single90] = toServed[n/2], toServed[n*9/10]
		r[northd50], r[northd90] = toBinding[n/2], toBinding[n*9/10]
	}
	return nil
}

// addNodes registers n nodes, and makes the namespaces that are named.
func addNodes(ctx context.Context, cl *central.Cluster, n int, namespaces ...string) error {
	for _, ns := range namespaces {
		if err := cl.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}); err != nil {
			return err
		}
	}
	return cl.AddNodes(ctx, n)
}

func podName(i int) string { return fmt.Sprintf("p%05d", i) }

func newPod(namespace, name, node string) *corev1.Pod {
	return central.NewPod(namespace, name, node, namespace)
}

// addPods creates pods 0 to n-1 of a namespace.
func addPods(ctx context.Context, cl *central.Cluster, namespace string, n, nodes int) error {
	return central.Each(ctx, central.Range{To: n}, func(ctx context.Context, i int) error {
		return cl.API.Create(ctx, newPod(namespace, podName(i), central.NodeName(i%nodes)))
	})
}

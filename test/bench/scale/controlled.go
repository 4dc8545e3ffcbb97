package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// controlled measures the controller: n pods at once, then single ones, then its restarts.
func controlled(ctx context.Context, cl *cluster, c config, n int) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	w, stop, err := watch(ctx, cl)
	if err != nil {
		return nil, err
	}
	defer stop()
	first, err := cl.startReplica(ctx, fmt.Sprintf("%d-first", n))
	if err != nil {
		return nil, err
	}
	if err := cl.addNodes(ctx, c.nodes, "bench", "single", "restart"); err != nil {
		return nil, err
	}
	if err := first.awaitReady(ctx); err != nil {
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
	first *replica
}

// meter is what has been used so far.
type meter struct {
	at                 time.Time
	controller, northd usage
	transactions       float64
	writes             map[string]float64
}

func read(ctx context.Context, cl *cluster, leader *replica) (meter, error) {
	m := meter{at: time.Now()}
	var err error
	if m.controller, err = leader.usage(); err != nil {
		return m, err
	}
	if m.northd, err = cl.northd.usage(); err != nil {
		return m, err
	}
	if m.transactions, err = leader.metric(ctx, "godwit_nb_transaction_duration_seconds_count"); err != nil {
		return m, err
	}
	m.writes, err = cl.writes(ctx)
	return m, err
}

// burst creates all pods as fast as the API server takes them and waits until each has its identity and its row.
func burst(ctx context.Context, cl *cluster, u task, r result) error {
	before, err := read(ctx, cl, u.first)
	if err != nil {
		return err
	}
	busy, err := readMachine()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cl.addPods(ctx, "bench", u.n, u.nodes); err != nil {
		return err
	}
	r[created] = seconds(time.Since(start))
	err = poll(ctx, fmt.Sprintf("%d pods are served", u.n), func() (bool, error) { return u.w.counts().served == u.n, nil })
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
	r[cpu] = seconds(after.controller.cpu - before.controller.cpu)
	r[rss], r[peak] = after.controller.rss, after.controller.peak
	r[northdCPU] = seconds(after.northd.cpu - before.northd.cpu)
	err = poll(ctx, fmt.Sprintf("%d pods have bindings", u.n), func() (bool, error) { return u.w.counts().bindings == u.n, nil })
	if err != nil {
		return err
	}
	r[bound] = seconds(u.w.last.Sub(start))
	return nil
}

// singles creates one pod at a time: how long the controller needs, and northd after it.
func singles(ctx context.Context, cl *cluster, u task, r result) error {
	var toServed, toBinding []float64
	for i := range u.samples {
		time.Sleep(300 * time.Millisecond) // everything is at rest
		start := time.Now()
		if err := cl.api.Create(ctx, newPod("single", podName(i), nodeName(i%u.nodes))); err != nil {
			return err
		}
		var s seen
		err := poll(ctx, "one pod more is bound", func() (bool, error) {
			s = u.w.of("single", podName(i))
			return !s.served().IsZero() && !s.binding.IsZero(), nil
		})
		if err != nil {
			return err
		}
		toServed = append(toServed, millis(s.served().Sub(start)))
		toBinding = append(toBinding, millis(s.binding.Sub(s.row)))
	}
	slices.Sort(toServed)
	slices.Sort(toBinding)
	if n := len(toServed); n > 0 {
		r[single50], r[single90] = toServed[n/2], toServed[n*9/10]
		r[northd50], r[northd90] = toBinding[n/2], toBinding[n*9/10]
	}
	return nil
}

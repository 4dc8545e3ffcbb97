package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/bench/central"
)

const (
	// stream is how often a pod is created while controllers change.
	stream = 20 * time.Millisecond
	// streamFor is how long: longer than any change of leaders takes.
	streamFor = 8 * time.Second
	rounds    = 3
)

// restarts ends leaders and measures how long pods that are created from that moment on wait for the next one.
func restarts(ctx context.Context, cl *central.Cluster, u task, r result) error {
	leader := u.first
	who, err := cl.Leader(ctx)
	if err != nil {
		return err
	}
	for _, k := range []struct {
		name string
		sig  syscall.Signal
		out  metric
	}{{"term", syscall.SIGTERM, afterTerm}, {"kill", syscall.SIGKILL, afterKill}} {
		for round := range rounds {
			standby, err := cl.Controller(ctx, fmt.Sprintf("%d-%s%d", u.n, k.name, round), cl.NB)
			if err != nil {
				return err
			}
			if err := standby.AwaitReady(ctx); err != nil {
				return err
			}
			prefix := fmt.Sprintf("%s-%d", k.name, round)
			gap, err := u.failover(ctx, cl, prefix, func() { leader.Signal(k.sig) })
			if err != nil {
				return fmt.Errorf("%s: %w", prefix, err)
			}
			r[k.out] = max(r[k.out], seconds(gap))
			if who, err = cl.AwaitLeader(ctx, who); err != nil {
				return err
			}
			u.log.Info("another controller took over", "signal", k.name, "longest wait", gap.Round(time.Millisecond), "leader", who)
			leader.Stop()
			leader = standby
		}
	}
	return alone(ctx, cl, u, leader, r)
}

// failover ends the leader and creates pods from then on; it returns the longest time that one of them waited.
func (u task) failover(ctx context.Context, cl *central.Cluster, prefix string, end func()) (time.Duration, error) {
	type created struct {
		name string
		at   time.Time
	}
	var pods []created
	tick := time.NewTicker(stream)
	defer tick.Stop()
	end()
	start := time.Now()
	for i := 0; time.Since(start) < streamFor; i++ {
		p := created{name: fmt.Sprintf("%s-%d", prefix, i), at: time.Now()}
		if err := cl.API.Create(ctx, newPod("restart", p.name, central.NodeName(i%u.nodes))); err != nil {
			return 0, err
		}
		pods = append(pods, p)
		<-tick.C
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var longest time.Duration
	for _, p := range pods {
		err := central.Poll(ctx, "pod "+p.name+" is served", func() (bool, error) { return !u.w.of("restart", p.name).served().IsZero(), nil })
		if err != nil {
			return 0, err
		}
		longest = max(longest, u.w.of("restart", p.name).served().Sub(p.at))
	}
	return longest, nil
}

// alone starts a controller where no other runs: all pods are read and restored before the new one is served.
func alone(ctx context.Context, cl *central.Cluster, u task, leader *central.Replica, r result) error {
	leader.Stop()
	if err := cl.API.Create(ctx, newPod("restart", "alone", central.NodeName(0))); err != nil {
		return err
	}
	last, err := cl.Controller(ctx, fmt.Sprintf("%d-alone", u.n), cl.NB)
	if err != nil {
		return err
	}
	if err := last.AwaitReady(ctx); err != nil {
		return err
	}
	r[readyAlone] = seconds(time.Since(last.Started))
	err = central.Poll(ctx, "pod alone is served", func() (bool, error) { return !u.w.of("restart", "alone").served().IsZero(), nil })
	if err != nil {
		return err
	}
	r[servedAlone] = seconds(u.w.of("restart", "alone").served().Sub(last.Started))
	time.Sleep(time.Second)
	m, err := read(ctx, cl, last)
	r[transactionsAlone], r[rssAlone] = m.transactions, m.controller.RSS
	return err
}

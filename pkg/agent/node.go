package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	// nodeTimeout bounds one pass of the node's loop.
	nodeTimeout = 60 * time.Second
	maxRetry    = 30 * time.Second
	// installInterval is how often plugin and configuration are looked at once they are in place: often enough for the kubelet, and no quarrel with another network that takes them away.
	// So often, too, a route is tried again that somebody else's is in the way of: nobody tells when that goes.
	installInterval = 30 * time.Second
)

// nodeState is what attachments take from the node's loop.
type nodeState struct {
	// db is there once connected is closed.
	db        switchDB
	connected chan struct{}
	datapath  string
	// mtu is the largest that a pod can have, in bytes; 0 before the node is ready.
	mtu atomicInt

	mu sync.Mutex
	// unrouted are ranges of pods that the node cannot reach. Its other pods do not suffer from them.
	unrouted []taken
}

// setUnrouted reports whether that is news.
func (n *nodeState) setUnrouted(left []taken) (changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed = !slices.Equal(n.unrouted, left)
	n.unrouted = left
	return changed
}

// blocked says whether somebody else's route is in the way of one of ours.
func (n *nodeState) blocked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.unrouted, func(t taken) bool { return t.route != "" })
}

// reaches says why the node could not reach a pod with these addresses, nil if it can.
func (n *nodeState) reaches(ips []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.unrouted {
		for _, ip := range ips {
			if t.cidr.Contains(ip.Addr()) {
				return errors.New(t.String())
			}
		}
	}
	return nil
}

// database returns when the connection to Open vSwitch was made.
func (n *nodeState) database(ctx context.Context) (switchDB, error) {
	start := time.Now()
	select {
	case <-n.connected:
		return n.db, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the Open vSwitch database has not been reachable since the agent started (%w): is ovsdb-server running?",
			waited("it", start, ctx.Err()))
	}
}

// nodeLoop makes the node ready for pods and keeps it so: chassis, gateway, CNI configuration, in this order. It runs on every change of the
// Node, Subnets, links, addresses and the database's configuration; every pass reads everything again.
type nodeLoop struct {
	log       *slog.Logger
	inputs    *inputs
	ready     *readiness
	state     *nodeState
	chassis   *chassis
	gateway   *gateway
	installer *installer
	wake      chan struct{}
	// installInterval: see the constant.
	installInterval time.Duration
	// installedOnce: the CNI configuration was written; missing are the chained plugins that were left out of it. This loop alone uses them.
	installedOnce bool
	missing       []string
}

// poke asks for a pass; it never blocks.
func (l *nodeLoop) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *nodeLoop) run(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = 100*time.Millisecond, maxRetry, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	again := time.NewTicker(l.installInterval)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			if l.installedOnce {
				_ = l.putInPlace() // readiness says it, and the next time is soon
			}
			if !l.state.blocked() {
				continue
			}
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
		err := l.pass(ctx)
		if err == nil || errors.Is(err, errPending) {
			retry.Reset()
			continue
		}
		next := retry.NextBackOff()
		l.log.Warn("node is not as wanted", "error", err, "retry_in", next.Round(time.Millisecond))
		timer.Reset(next)
	}
}

// pass makes one attempt and records in readiness what is missing.
func (l *nodeLoop) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	node := l.inputs.node()
	if node == nil {
		return l.report(compChassis, fmt.Errorf("%w: the API server has no Node %s", errPending, l.inputs.nodeName))
	}
	t, changed, err := l.chassis.reconcile(ctx, l.state.db, node, l.state.datapath)
	if len(changed) > 0 {
		l.log.Info("chassis configured", "changed", changed, "encap_ip", t.IP, "underlay", t.Link, "mtu", t.MTU, "datapath", l.state.datapath)
	}
	chassisErr := l.report(compChassis, err)
	if chassisErr == nil {
		l.state.mtu.Store(t.MTU)
	}
	mtu := l.state.mtu.Load()
	if mtu == 0 {
		return chassisErr
	}
	// Also when the chassis was right before and is not now: pods reach their own node without tunnels.
	left, err := l.gateway.reconcile(ctx, l.state.db, gatewayInput{
		node: node, podCIDRs: sortedPrefixes(l.inputs.podCIDRs()), translations: l.inputs.translations(node.Name), mtu: mtu, datapath: l.state.datapath,
	})
	if l.state.setUnrouted(left) {
		for _, t := range left {
			l.log.Warn("new pods of a Subnet are refused", "reason", t.String())
		}
	}
	ended := l.gateway.endTranslated()
	if err := firstFailure(chassisErr, l.report(compGateway, err)); err != nil {
		return firstFailure(err, ended)
	}
	return firstFailure(l.install(), ended)
}

// firstFailure prefers an error that only another attempt can end to one that an event will.
func firstFailure(errs ...error) error {
	var pending error
	for _, err := range errs {
		if err != nil && !errors.Is(err, errPending) {
			return err
		}
		pending = cmp.Or(pending, err)
	}
	return pending
}

// install runs when everything else is there; from then on the loop's ticker looks after it.
func (l *nodeLoop) install() error {
	if l.installedOnce {
		return nil
	}
	return l.putInPlace()
}

// putInPlace writes what is not there, or is not as it should be: other networks take configurations away that are not theirs, and whoever replaces the directory of plugins replaces all of it.
func (l *nodeLoop) putInPlace() error {
	changed, missing, err := l.installer.install()
	if err := l.report(compInstall, err); err != nil {
		return err
	}
	if len(missing) > 0 && !slices.Equal(missing, l.missing) {
		l.log.Warn("chained CNI plugins are left out: install them in the runtime's directory, and they are in the configuration soon", "missing", missing, "directory", l.installer.cfg.CNIBinDir)
	}
	l.missing = missing
	switch {
	case !l.installedOnce:
		l.log.Info("CNI plugin and configuration are in place", "changed", changed)
	case len(changed) > 0:
		l.log.Warn("CNI plugin or configuration put in place again: somebody had changed or removed it, or a chained plugin has come or gone", "changed", changed)
	}
	l.installedOnce = true
	return nil
}

// report records the outcome of one component's step; a state that is news is logged.
func (l *nodeLoop) report(component string, err error) error {
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	if l.ready.set(component, reason) {
		if err != nil {
			l.log.Info("not ready", "component", component, "reason", reason)
		} else {
			l.log.Info("ready", "component", component)
		}
	}
	return err
}

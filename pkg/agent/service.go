package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/service"
)

const (
	// serviceInterval lets changes that come together share a transaction.
	serviceInterval = 50 * time.Millisecond
	// serviceTimeout bounds one transaction: with thousands of Services the whole table takes seconds.
	serviceTimeout = 60 * time.Second
)

// balancer is the kernel's balancing of Services; *netdev.Balancer implements it.
type balancer interface {
	SetPassage(p netdev.Passage)
	Set(f netdev.Frontend, to netdev.Balance)
	Delete(f netdev.Frontend)
	Doubt()
	Write(ctx context.Context) (wrote bool, err error)
}

var _ balancer = (*netdev.Balancer)(nil)

// services serves what the node's own processes send to Services, and what comes to the node for them: ClusterIPs, node ports, external and load balancer addresses. What pods send
// to a Service's address is OVN's, which the controller tells.
//
// Inputs: Services, EndpointSlices, Ports (where a VM is, and whether it moves), Subnets, annotation godwit.dev/join of the Node. Outputs: nftables table inet godwit-services; UDP entries
// of connection tracking that lead to endpoints that are gone, deleted; the health checks' ports.
type services struct {
	node    string
	log     *slog.Logger
	objects *serviceInputs
	inputs  *inputs
	table   balancer
	metrics *serviceMetrics
	listen  listener
	wake    chan struct{}
	// healthy: the last pass wrote what was to be written.
	healthy atomic.Bool

	// The rest belongs to run.

	index *service.Index
	vms   *service.VMs
	// placed are the frontends of each Service, owners whose each is.
	placed map[service.Key][]netdev.Frontend
	owners map[netdev.Frontend]service.Key
	// checked are the Services that have a health check.
	checked map[service.Key]struct{}
	// due is when a Port is to be read again because a hold of it ends.
	due map[types.NamespacedName]time.Time
	// waiting is why nothing can be written yet.
	waiting string
}

func newServices(node string, src Sources, in *inputs, table balancer, listen listener) (*services, error) {
	s := &services{
		node: node, inputs: in, table: table, listen: listen, wake: make(chan struct{}, 1), index: service.New(),
		placed: map[service.Key][]netdev.Frontend{}, owners: map[netdev.Frontend]service.Key{}, checked: map[service.Key]struct{}{}, due: map[types.NamespacedName]time.Time{},
	}
	s.vms = service.NewVMs(s.index)
	var err error
	s.objects, err = newServiceInputs(src, s.poke)
	return s, err
}

// poke asks for a pass; it never blocks.
func (s *services) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// doubt asks for a pass that looks whether the table is still there.
func (s *services) doubt() {
	s.table.Doubt()
	s.poke()
}

// run serves until ctx ends. Connections go on after it, and new ones as they were served last.
func (s *services) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.objects.run(ctx); return nil })
	checks := newHealthChecks(s.log, &s.healthy, g, s.listen)
	g.Go(func() error {
		if s.objects.synced(ctx) && s.inputs.synced(ctx) {
			s.loop(ctx, checks)
		}
		return nil
	})
	return g.Wait()
}

func (s *services) loop(ctx context.Context, checks *healthChecks) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = 100*time.Millisecond, maxRetry, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		again := s.tell(time.Now())
		err := s.write(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			next := retry.NextBackOff()
			s.log.Warn("Services are not served as they should be on this node", "error", err, "retry_in", next.Round(time.Millisecond))
			again = sooner(again, next)
		} else {
			retry.Reset()
		}
		again = sooner(again, checks.sync(ctx, s.targets()))
		timer.Stop()
		if again > 0 {
			timer.Reset(again)
		}
		select { // what comes meanwhile comes together
		case <-ctx.Done():
			return
		case <-time.After(serviceInterval):
		}
	}
}

// sooner is the smaller of two times of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// tell tells the index what has changed, and the table what follows. again is when a hold of a VM's endpoint ends.
func (s *services) tell(now time.Time) (again time.Duration) {
	staleServices, stalePorts := s.objects.take()
	for key, at := range s.due {
		if !now.Before(at) {
			stalePorts[key] = struct{}{}
		}
	}
	for key := range stalePorts { // before the endpoints: one that is not ready any more may be held
		delete(s.due, key)
		p := s.objects.port(key)
		if p == nil {
			s.vms.Delete(key)
		} else if wait := s.vms.Set(p, now); wait > 0 {
			s.due[key] = now.Add(wait)
		}
	}
	for key := range staleServices {
		if svc := s.objects.service(key); svc != nil {
			s.index.Set(svc, s.objects.slicesOf(key))
		} else {
			s.index.Delete(key)
		}
	}
	s.index.Reserve(s.ranges())
	s.place(s.index.Take())
	for _, at := range s.due {
		again = sooner(again, max(at.Sub(now), time.Millisecond))
	}
	return again
}

// ranges are the network's own, which no Service may have an address in.
func (s *services) ranges() []netip.Prefix {
	out := sortedPrefixes(s.inputs.podCIDRs())
	if node := s.inputs.node(); node != nil {
		if join, err := nodeJoin(node); err == nil {
			for _, ip := range join.IPs {
				out = append(out, ip.Masked())
			}
		}
	}
	return out
}

// place gives the table the frontends of Services that came out differently. What one of them gave up another may have taken.
func (s *services) place(keys []service.Key) {
	type placement struct {
		key  service.Key
		want map[netdev.Frontend]netdev.Balance
	}
	var next []placement
	for _, key := range keys {
		p := placement{key: key}
		delete(s.checked, key)
		if svc, ok := s.index.Service(key); ok {
			p.want = frontends(svc, s.node)
			if svc.HealthCheckPort != 0 {
				s.checked[key] = struct{}{}
			}
		}
		for _, f := range s.placed[key] {
			if _, still := p.want[f]; !still && s.owners[f] == key {
				s.table.Delete(f)
				delete(s.owners, f)
			}
		}
		delete(s.placed, key)
		next = append(next, p)
	}
	for _, p := range next {
		for f, to := range p.want {
			s.table.Set(f, to)
			s.owners[f] = p.key
			s.placed[p.key] = append(s.placed[p.key], f)
		}
	}
	s.metrics.frontends.Set(float64(len(s.owners)))
	s.metrics.services.Set(float64(len(s.placed)))
}

// write writes the table, unless the node has no place in the network yet.
func (s *services) write(ctx context.Context) error {
	passage, err := s.passage()
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	if reason != s.waiting && reason != "" {
		s.log.Info("Services wait", "reason", reason)
	}
	s.waiting = reason
	if err != nil {
		return nil //nolint:nilerr // the Node's change is an event
	}
	s.table.SetPassage(passage)
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	start := time.Now()
	wrote, err := s.table.Write(ctx)
	if err != nil {
		s.healthy.Store(false)
		s.metrics.failures.Inc()
		return err
	}
	if wrote {
		s.metrics.seconds.Observe(time.Since(start).Seconds())
	}
	if !s.healthy.Swap(true) {
		s.log.Info("Services are served on this node", "services", len(s.placed), "frontends", len(s.owners), "took", time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// errNoClients: an older controller has annotated the node, or the join network is full.
var errNoClients = errors.New("no address for clients")

func (s *services) passage() (netdev.Passage, error) {
	node := s.inputs.node()
	if node == nil {
		return netdev.Passage{}, fmt.Errorf("%w: the API server has no Node %s", errPending, s.node)
	}
	join, err := nodeJoin(node)
	if err != nil {
		return netdev.Passage{}, err
	}
	if len(join.Clients) == 0 {
		return netdev.Passage{}, fmt.Errorf("%w: annotation %s of Node %s has %w: is godwit-controller older than this agent, or the join network full (events of the Node)?",
			errPending, v1alpha1.JoinAnnotation, node.Name, errNoClients)
	}
	return netdev.Passage{Gateway: ident.GatewayInterface, Own: addrsOf(join.IPs), Clients: addrsOf(join.Clients)}, nil
}

func addrsOf(ips []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(ips))
	for i, ip := range ips {
		out[i] = ip.Addr()
	}
	return out
}

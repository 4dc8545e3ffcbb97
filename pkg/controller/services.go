package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// services is what Services come to. The reconcilers of Services, VMs' Ports and Subnets tell it what they see, and apply what is pending. It is a manager.Runnable,
// which compares everything with the database when what it holds is not known. It is safe for concurrent use.
type services struct {
	nb     *ovn.NB
	writer *ovn.ServiceWriter
	log    *slog.Logger
	join   []netip.Prefix
	now    func() time.Time
	// again receives a value when there is something to write that nobody has asked for.
	again chan struct{}
	// restored is closed when everything that exists has been told.
	restored chan struct{}
	// compared: what the database has was made right once.
	compared atomic.Bool

	mu    sync.Mutex
	index *service.Index
	vms   *service.VMs
	// changed are the Services that came out differently and were not taken yet.
	changed map[service.Key]bool
}

func newServices(nb *ovn.NB, log *slog.Logger, join []netip.Prefix) *services {
	index := service.New()
	s := &services{
		nb: nb, log: log, join: join, now: time.Now, again: make(chan struct{}, 1), restored: make(chan struct{}),
		index: index, vms: service.NewVMs(index), changed: map[service.Key]bool{},
	}
	s.writer = nb.NewServiceWriter(s, s.wake)
	return s
}

func (s *services) wake() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// Take implements ovn.ServiceSource, as the next two do.
func (s *services) Take() []service.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Collect(maps.Keys(s.changed))
	clear(s.changed)
	return out
}

// Rows are those of a Service.
func (s *services) Rows(key service.Key) topology.ServiceRows {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc, ok := s.index.Service(key); ok {
		return topology.Service(svc)
	}
	return topology.ServiceRows{}
}

// All are the rows of all Services.
func (s *services) All() map[service.Key]topology.ServiceRows {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[service.Key]topology.ServiceRows{}
	for _, svc := range s.index.Services() {
		out[svc.Key] = topology.Service(svc)
	}
	return out
}

// tell changes what is known, and returns the problems of the Services that came out differently. What was ready before each change is what is held after it, so that the
// index is asked each time.
func (s *services) tell(change func(*service.Index)) map[service.Key][]service.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.index)
	out := map[service.Key][]service.Problem{}
	for _, key := range s.index.Take() {
		s.changed[key] = true
		out[key] = s.index.Problems(key)
	}
	return out
}

// pending writes what has been told.
func (s *services) pending() ovn.Change { return s.writer.Pending() }

// wait returns nil when everything that exists has been told.
func (s *services) wait(ctx context.Context) error {
	select {
	case <-s.restored:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the Services to be read: %w", context.Cause(ctx))
	}
}

// restore tells everything that exists, VMs first: what is held of them is decided with the first look at a Service. It is called once, on the leader.
func (s *services) restore(ctx context.Context, api client.Reader) error {
	var ports v1alpha1.PortList
	var subnets v1alpha1.SubnetList
	var list corev1.ServiceList
	var endpoints discoveryv1.EndpointSliceList
	for _, l := range []client.ObjectList{&ports, &subnets, &list, &endpoints} {
		if err := api.List(ctx, l, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list %T for Services: %w", l, err)
		}
	}
	of := map[service.Key][]*discoveryv1.EndpointSlice{}
	for i := range endpoints.Items {
		key := service.Of(&endpoints.Items[i])
		of[key] = append(of[key], &endpoints.Items[i])
	}
	s.tell(func(x *service.Index) {
		x.Reserve(s.ranges(&subnets))
		for i := range ports.Items {
			s.vms.Set(&ports.Items[i], s.now())
		}
		for i := range list.Items {
			x.Set(&list.Items[i], of[service.Key(client.ObjectKeyFromObject(&list.Items[i]))])
		}
	})
	close(s.restored)
	return nil
}

// ranges are the network's own.
func (s *services) ranges(list *v1alpha1.SubnetList) []netip.Prefix {
	out := slices.Clone(s.join)
	for i := range list.Items {
		if !list.Items[i].InNetwork() {
			continue
		}
		if cidrs, err := ipam.ParseCIDRs(list.Items[i].Spec.CIDRs); err == nil { // else the Subnet's own condition says so
			out = append(out, cidrs...)
		}
	}
	return out
}

// Start implements manager.Runnable.
func (s *services) Start(ctx context.Context) error {
	if s.wait(ctx) != nil {
		return nil //nolint:nilerr // told to end
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-s.again:
		}
		err := s.nb.Apply(ctx, s.writer.Compare(), s.pending())
		if err == nil {
			s.compared.Store(true)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.log.Error("Services are not written: they are compared with the northbound database and tried again", "error", err, "in", compareRetry)
		_ = s.nb.Apply(ctx, s.writer.Stale()) // of its own it fails only with the context
		select {                              // whoever asks meanwhile: it would be refused again
		case <-ctx.Done():
			return nil
		case <-time.After(compareRetry):
		}
		retry.Reset(0)
	}
}

// verify looks whether the database has what it should, and lets it be mended. What is being written at the moment looks like a difference too, and is none.
func (s *services) verify(ctx context.Context) error {
	for range verifyTries {
		differs, err := s.writer.Differs(ctx, s.nb)
		if err != nil || !differs {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(compareRetry):
		}
	}
	s.log.Warn("the load balancers of Services in the northbound database are not as they should be: somebody has changed them, or there are many of nodes without endpoints; they are mended")
	if err := s.nb.Apply(ctx, s.writer.Stale()); err != nil {
		return err
	}
	s.wake()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (s *services) NeedLeaderElection() bool { return true }

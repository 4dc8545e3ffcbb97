package controller

// Service, VM endpoint and reserved range reconcilers.
// In:   Services, EndpointSlices (by their label kubernetes.io/service-name), Ports (where a VM is, whether it moves), Subnets (ranges that no Service may have).
// Out:  Load_Balancer rows of ours and what belongs to them, through ovn.ServiceWriter; events on Services in which something is wrong.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/service"
)

// indexService finds EndpointSlices by the name of their Service.
const indexService = "service"

// serviceWorkers is how many Services are reconciled at once: they share transactions, and the index is one at a time.
const serviceWorkers = 8

// addServices lets Services be served, unless that is another's.
func addServices(ctx context.Context, p parts, m *metrics, recorder events.EventRecorder) error {
	ready := p.mgr.AddReadyzCheck("services", func(*http.Request) error {
		if elected(p.mgr) && !p.services.compared.Load() {
			return errors.New("the load balancers of Services are not compared with the northbound database yet")
		}
		return nil
	})
	if err := errors.Join(ready, p.mgr.Add(p.services)); err != nil || !p.Services {
		return err
	}
	for _, obj := range []client.Object{&corev1.Service{}, &discoveryv1.EndpointSlice{}} {
		if _, err := p.mgr.GetCache().GetInformer(ctx, obj); err != nil {
			return fmt.Errorf("watch %T: %w", obj, err)
		}
	}
	err := p.mgr.GetFieldIndexer().IndexField(ctx, &discoveryv1.EndpointSlice{}, indexService, func(o client.Object) []string {
		if name := service.Of(o).Name; name != "" {
			return []string{name}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index EndpointSlices by %s: %w", indexService, err)
	}
	toService := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		if key := service.Of(o); key.Name != "" {
			return []reconcile.Request{{NamespacedName: types.NamespacedName(key)}}
		}
		return nil
	})
	told := &serviceTelling{api: p.mgr.GetClient(), nb: p.nb, services: p.services, events: recorder, metrics: m, log: p.Logger, said: map[service.Key][]service.Problem{}}
	return errors.Join(
		ctrl.NewControllerManagedBy(p.mgr).Named("service").For(&corev1.Service{}).Watches(&discoveryv1.EndpointSlice{}, toService).
			WithOptions(options(serviceWorkers)).Complete(reconcile.Func(told.service)),
		ctrl.NewControllerManagedBy(p.mgr).Named("servicevm").For(&v1alpha1.Port{}).WithOptions(options(1)).Complete(reconcile.Func(told.port)),
		ctrl.NewControllerManagedBy(p.mgr).Named("servicerange").For(&v1alpha1.Subnet{}).WithOptions(options(1)).Complete(reconcile.Func(told.subnets)),
	)
}

// serviceTelling tells services what is in the API.
type serviceTelling struct {
	api      client.Reader
	nb       *ovn.NB
	services *services
	events   events.EventRecorder
	metrics  *metrics
	log      *slog.Logger

	mu sync.Mutex
	// said are the problems that were last told of each Service: endpoints change often, and what is wrong with a Service does not.
	said map[service.Key][]service.Problem
}

// service reads one Service and its EndpointSlices.
func (r *serviceTelling) service(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.services.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("Service %s: %w", req.NamespacedName, err)
	}
	var svc corev1.Service
	err := r.api.Get(ctx, req.NamespacedName, &svc)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.apply(ctx, fmt.Sprintf("Service %s", req.NamespacedName), func(x *service.Index) { x.Delete(service.Key(req.NamespacedName)) })
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read Service %s: %w", req.NamespacedName, err)
	}
	var list discoveryv1.EndpointSliceList
	if err := r.api.List(ctx, &list, client.InNamespace(req.Namespace), client.MatchingFields{indexService: req.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list the EndpointSlices of Service %s: %w", req.NamespacedName, err)
	}
	endpoints := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		endpoints[i] = &list.Items[i]
	}
	return reconcile.Result{}, r.apply(ctx, fmt.Sprintf("Service %s", req.NamespacedName), func(x *service.Index) { x.Set(&svc, endpoints) })
}

// port reads where a VM is, and comes back when a hold of it ends.
func (r *serviceTelling) port(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.services.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("Port %s: %w", req.NamespacedName, err)
	}
	var port v1alpha1.Port
	err := r.api.Get(ctx, req.NamespacedName, &port)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read Port %s: %w", req.NamespacedName, err)
	}
	var result reconcile.Result
	err = r.apply(ctx, fmt.Sprintf("Port %s", req.NamespacedName), func(*service.Index) {
		if err != nil {
			r.services.vms.Delete(req.NamespacedName)
			return
		}
		result.RequeueAfter = r.services.vms.Set(&port, r.services.now())
	})
	return result, err
}

// subnets reads all ranges that are the network's own, whichever Subnet has changed.
func (r *serviceTelling) subnets(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.services.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("ranges of Subnets: %w", err)
	}
	var list v1alpha1.SubnetList
	if err := r.api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list Subnets: %w", err)
	}
	return reconcile.Result{}, r.apply(ctx, "ranges of Subnets", func(x *service.Index) { x.Reserve(r.services.ranges(&list)) })
}

// apply tells a change, says what is wrong with the Services that came out differently, and writes them.
func (r *serviceTelling) apply(ctx context.Context, what string, change func(*service.Index)) error {
	for key, problems := range r.services.tell(change) {
		r.report(ctx, key, problems)
	}
	if err := r.nb.Apply(ctx, r.services.pending()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// report says what is wrong with a Service if that is news.
func (r *serviceTelling) report(ctx context.Context, key service.Key, problems []service.Problem) {
	r.mu.Lock()
	news := !slices.Equal(r.said[key], problems)
	r.said[key] = problems
	if len(problems) == 0 {
		delete(r.said, key)
	}
	r.mu.Unlock()
	if !news || len(problems) == 0 {
		return
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if err := r.api.Get(ctx, types.NamespacedName(key), svc); err != nil {
		r.log.Debug("a Service with problems is not there any more", "service", key, "error", err)
		return
	}
	for _, p := range problems {
		r.log.Warn("bad Service", "service", key, "reason", p.Reason, "detail", p.Message)
		r.metrics.serviceProblems.WithLabelValues(string(p.Reason)).Inc()
		r.events.Eventf(svc, nil, corev1.EventTypeWarning, string(p.Reason), "ServeService", "%s", p.Message)
	}
}

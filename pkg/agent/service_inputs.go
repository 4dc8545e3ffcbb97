package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/service"
)

// indexSlice finds EndpointSlices by their Service.
const indexSlice = "service"

// serviceInputs holds what Services follow from, and what of it has changed since it was last taken.
type serviceInputs struct {
	services, slices, ports cache.SharedIndexInformer
	// told says of each informer whether its handler has had the first list.
	told    []cache.InformerSynced
	changed func()

	mu sync.Mutex
	// staleServices and stalePorts are to be read again.
	staleServices map[service.Key]struct{}
	stalePorts    map[types.NamespacedName]struct{}
}

// newServiceInputs calls changed after any change; changed must return at once.
func newServiceInputs(src Sources, changed func()) (*serviceInputs, error) {
	in := &serviceInputs{changed: changed, staleServices: map[service.Key]struct{}{}, stalePorts: map[types.NamespacedName]struct{}{}}
	in.services = cache.NewSharedIndexInformer(src.Services, &corev1.Service{}, 0, cache.Indexers{})
	in.slices = cache.NewSharedIndexInformer(src.EndpointSlices, &discoveryv1.EndpointSlice{}, 0, cache.Indexers{indexSlice: func(obj any) ([]string, error) {
		if es, ok := obj.(*discoveryv1.EndpointSlice); ok {
			return []string{service.Of(es).String()}, nil
		}
		return nil, nil
	}})
	in.ports = cache.NewSharedIndexInformer(src.Ports, &v1alpha1.Port{}, 0, cache.Indexers{})
	errs := []error{in.services.SetTransform(service.Trim), in.slices.SetTransform(service.Trim), in.ports.SetTransform(trimPort)}
	for informer, tell := range map[cache.SharedIndexInformer]func(any){
		in.services: func(obj any) {
			in.stale(obj, func(key types.NamespacedName) { in.staleServices[service.Key(key)] = struct{}{} })
		},
		in.ports:  func(obj any) { in.stale(obj, func(key types.NamespacedName) { in.stalePorts[key] = struct{}{} }) },
		in.slices: in.sliceChanged,
	} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			// The label by which a slice belongs to a Service cannot change to another's unseen: both states are told.
			AddFunc: tell, UpdateFunc: func(old, obj any) { tell(old); tell(obj) }, DeleteFunc: tell,
		})
		if errs = append(errs, err); err == nil {
			in.told = append(in.told, registration.HasSynced)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("set informers of Services up: %w", err)
	}
	return in, nil
}

// run runs the informers until ctx ends. Pods get their network without.
func (in *serviceInputs) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, informer := range []cache.SharedIndexInformer{in.services, in.slices, in.ports} {
		wg.Go(func() { informer.RunWithContext(ctx) })
	}
	wg.Wait()
}

// synced returns when the first lists are here, and all of what is in them has been noted; false if ctx ended before.
func (in *serviceInputs) synced(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), in.told...)
}

// stale notes the key of an object.
func (in *serviceInputs) stale(obj any, note func(types.NamespacedName)) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m, ok := obj.(metav1.Object)
	if !ok {
		return
	}
	in.mu.Lock()
	note(types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()})
	in.mu.Unlock()
	in.changed()
}

func (in *serviceInputs) sliceChanged(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	es, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return
	}
	in.mu.Lock()
	in.staleServices[service.Of(es)] = struct{}{}
	in.mu.Unlock()
	in.changed()
}

// take returns what has changed since the last call.
func (in *serviceInputs) take() (services map[service.Key]struct{}, ports map[types.NamespacedName]struct{}) {
	in.mu.Lock()
	defer in.mu.Unlock()
	services, ports = in.staleServices, in.stalePorts
	in.staleServices, in.stalePorts = map[service.Key]struct{}{}, map[types.NamespacedName]struct{}{}
	return services, ports
}

// service is nil if there is none.
func (in *serviceInputs) service(key service.Key) *corev1.Service {
	obj, ok, err := in.services.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return nil
	}
	svc, _ := obj.(*corev1.Service)
	return svc
}

// slicesOf are the EndpointSlices of a Service.
func (in *serviceInputs) slicesOf(key service.Key) []*discoveryv1.EndpointSlice {
	objs, err := in.slices.GetIndexer().ByIndex(indexSlice, key.String())
	if err != nil {
		return nil // there is the index
	}
	var out []*discoveryv1.EndpointSlice
	for _, obj := range objs {
		if es, ok := obj.(*discoveryv1.EndpointSlice); ok {
			out = append(out, es)
		}
	}
	return out
}

// port is nil if there is none.
func (in *serviceInputs) port(key types.NamespacedName) *v1alpha1.Port {
	obj, ok, err := in.ports.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return nil
	}
	p, _ := obj.(*v1alpha1.Port)
	return p
}

func trimPort(obj any) (any, error) {
	p, ok := obj.(*v1alpha1.Port)
	if !ok {
		return obj, nil
	}
	meta := metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
	status := p.Status
	status.Conditions = nil
	return &v1alpha1.Port{ObjectMeta: meta, Status: status}, nil
}

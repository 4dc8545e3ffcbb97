package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// A leader that is stopped gives its lease back, and another sees that at its next try: they are 1 to 2.2 retryPeriods apart (client-go adds jitter). One
// that dies without a word is replaced leaseDuration after another saw it alive, which it also looks at once in a try: in 5 s at most. The leader writes
// its lease every retryPeriod; whole seconds for leaseDuration, the API has no other.
const (
	leaseDuration = 4 * time.Second
	renewDeadline = 3500 * time.Millisecond
	retryPeriod   = 220 * time.Millisecond
)

// Run runs the controller until ctx ends. It returns an error when it cannot start or loses its lease.
func Run(ctx context.Context, c Config, api *rest.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	join, err := c.join()
	if err != nil {
		return err
	}
	nb, err := ovn.Connect(ctx, ovn.Config{Endpoints: c.NBEndpoints, Registerer: c.Registerer, Logger: c.Logger})
	if err != nil {
		return err
	}
	defer nb.Close()
	mgr, err := newManager(c, api)
	if err != nil {
		return err
	}
	alloc := newAllocations(mgr.GetCache(), nb, join)
	if err := addReadiness(mgr, nb, alloc.restore); err != nil {
		return err
	}
	if err := addReconcilers(ctx, mgr, c, nb, alloc); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return nb.Run(ctx) })
	g.Go(func() error { return mgr.Start(ctx) })
	return g.Wait()
}

func newManager(c Config, api *rest.Config) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	lease, renew, retry := leaseDuration, renewDeadline, retryPeriod
	mgr, err := ctrl.NewManager(api, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        logr.FromSlogHandler(c.Logger.Handler()),
		Metrics:                       metricsserver.Options{BindAddress: c.MetricsAddress},
		HealthProbeBindAddress:        c.HealthAddress,
		LeaderElection:                c.LeaderElection,
		LeaderElectionID:              "godwit-controller",
		LeaderElectionNamespace:       c.Namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &lease,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&corev1.Pod{}: {Transform: stripPod}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the controller manager: %w", err)
	}
	return mgr, nil
}

// stripPod keeps of a cached pod what the reconcilers read: a cluster has many pods, and most of each is its containers.
func stripPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields = nil
	pod.Spec = corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork}
	pod.Status = corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP}
	return pod, nil
}

// addReadiness: the leader is ready when it serves pods: it reaches the northbound database and has restored all addresses. Another replica is ready when it
// could take over at once: it reaches the database and has read the API's objects. Were it not, a Deployment would never have all its replicas, and a
// rolling update would stop the leader before another can follow it.
func addReadiness(mgr manager.Manager, nb *ovn.NB, restore *restoration) error {
	ready := func(*http.Request) error {
		if !nb.Connected() {
			return errors.New("the northbound database cannot be reached")
		}
		return nil
	}
	synced := func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the API's objects are not read yet")
		}
		return nil
	}
	restored := func(*http.Request) error {
		if elected(mgr) && !restore.isDone() {
			return errors.New("the addresses of the Subnets are not restored yet")
		}
		return nil
	}
	alive := func(*http.Request) error { return nil }
	return errors.Join(mgr.AddReadyzCheck("northbound", ready), mgr.AddReadyzCheck("cache", synced), mgr.AddReadyzCheck("restored", restored),
		mgr.AddHealthzCheck("alive", alive))
}

func elected(mgr manager.Manager) bool {
	select {
	case <-mgr.Elected():
		return true
	default:
		return false
	}
}

// warm makes a replica that does not lead read all objects, so that it can take over at once.
func warm(ctx context.Context, mgr manager.Manager) error {
	for _, obj := range []client.Object{&corev1.Pod{}, &corev1.Node{}, &corev1.Namespace{}, &v1alpha1.Subnet{}} {
		if _, err := mgr.GetCache().GetInformer(ctx, obj); err != nil {
			return fmt.Errorf("watch %T: %w", obj, err)
		}
	}
	return nil
}

func addReconcilers(ctx context.Context, mgr manager.Manager, c Config, nb *ovn.NB, alloc *allocations) error {
	if err := warm(ctx, mgr); err != nil {
		return err
	}
	join := alloc.join.Spec()
	events := mgr.GetEventRecorder("godwit-controller")
	var nodes trigger
	nb.WatchPorts(func(namespace, name, kind string) {
		if !elected(mgr) {
			return // the leader sees to it; whoever leads next looks at every pod and every row anyway
		}
		switch kind {
		case ident.OwnerPod:
			alloc.pods.enqueue(types.NamespacedName{Namespace: namespace, Name: name})
		case ident.OwnerNode:
			nodes.enqueue(types.NamespacedName{Name: name})
		}
	})
	pods := &podReconciler{api: mgr.GetClient(), nb: nb, alloc: alloc, events: events, log: c.Logger}
	subnets := &subnetReconciler{api: mgr.GetClient(), nb: nb, alloc: alloc, join: join, log: c.Logger}
	node := &nodeReconciler{api: mgr.GetClient(), nb: nb, alloc: alloc, events: events, log: c.Logger}
	return errors.Join(
		mgr.Add(leaderTask(func(ctx context.Context) error {
			if err := prepare(ctx, mgr.GetClient(), nb, c, join); err != nil {
				return err
			}
			if err := alloc.restoreMTUs(ctx); err != nil {
				return err
			}
			if err := alloc.hurry(ctx); err != nil {
				return err
			}
			return alloc.restore.run(ctx, mgr.GetCache())
		})),
		ctrl.NewControllerManagedBy(mgr).Named("pod").For(&corev1.Pod{}).WatchesRawSource(&alloc.pods).WithOptions(options(c.PodWorkers)).Complete(pods),
		ctrl.NewControllerManagedBy(mgr).Named("subnet").For(&v1alpha1.Subnet{}).WatchesRawSource(&alloc.subnets).WithOptions(options(1)).Complete(subnets),
		ctrl.NewControllerManagedBy(mgr).Named("node").For(&corev1.Node{}).WatchesRawSource(&nodes).WithOptions(options(4)).Complete(node),
		mgr.Add(&garbageCollector{api: mgr.GetCache(), nb: nb, pods: &alloc.pods, nodes: &nodes, log: c.Logger}),
	)
}

func options(workers int) controller.Options {
	skip := true // the names are unique in a process; tests start several managers in one
	return controller.Options{
		MaxConcurrentReconciles: workers,
		SkipNameValidation:      &skip,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 10*time.Second),
		ReconciliationTimeout:   30 * time.Second,
	}
}

// leaderTask is a manager.Runnable that runs once, on the leader.
type leaderTask func(context.Context) error

// Start implements manager.Runnable.
func (t leaderTask) Start(ctx context.Context) error { return t(ctx) }

// prepare makes what everything else needs: the network, and the default Subnet if there is none of that name.
func prepare(ctx context.Context, api client.Client, nb *ovn.NB, c Config, join ipam.Spec) error {
	if err := nb.Apply(ctx, networkChanges(join)...); err != nil {
		return fmt.Errorf("network %s: %w", network, err)
	}
	subnet := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: DefaultSubnet}, Spec: v1alpha1.SubnetSpec{CIDRs: c.DefaultCIDRs}}
	if err := api.Create(ctx, subnet); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create the Subnet %s: %w", DefaultSubnet, err)
	}
	return nil
}

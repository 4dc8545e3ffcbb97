package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
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
	nb, sb, err := connect(ctx, c)
	if err != nil || nb == nil {
		return err
	}
	defer nb.Close()
	defer sb.Close()
	mgr, err := newManager(c, api)
	if err != nil {
		return err
	}
	q := &queues{}
	alloc := newAllocations(mgr.GetCache(), nb, join, q)
	if err := addReadiness(mgr, nb, sb, alloc.restore); err != nil {
		return err
	}
	if err := addReconcilers(ctx, parts{Config: c, mgr: mgr, nb: nb, sb: sb, alloc: alloc, queues: q}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if c.TLS != nil && !c.Issuing {
		g.Go(func() error { return watchCertificate(ctx, c) })
	}
	g.Go(func() error { return nb.Run(ctx) })
	g.Go(func() error { return sb.Run(ctx) })
	g.Go(func() error { return mgr.Start(ctx) })
	return g.Wait()
}

func newManager(c Config, api *rest.Config) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	lease, renew, retry := leaseDuration, renewDeadline, retryPeriod
	mgr, err := ctrl.NewManager(api, ctrl.Options{
		Scheme:                        scheme,
		Logger:                        logr.FromSlogHandler(c.Logger.Handler()),
		Metrics:                       metricsserver.Options{BindAddress: c.MetricsAddress, HandlerOpts: []func(*promhttp.HandlerOpts){tolerant(c.Logger)}},
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
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Pod{}: {Transform: stripPod}, &corev1.Service{}: {Transform: service.Trim}, &discoveryv1.EndpointSlice{}: {Transform: service.Trim},
				&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{c.Namespace: {LabelSelector: egressLeases()}}},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the controller manager: %w", err)
	}
	return mgr, nil
}

// tolerant has a sample that cannot be told cost itself alone, and says so: alerts are made of the others.
func tolerant(log *slog.Logger) func(*promhttp.HandlerOpts) {
	return func(o *promhttp.HandlerOpts) {
		o.ErrorHandling, o.ErrorLog, o.Registry = promhttp.ContinueOnError, slog.NewLogLogger(log.Handler(), slog.LevelWarn), ctrlmetrics.Registry
	}
}

// egressLeases selects the Leases of nodes that can be gateways.
func egressLeases() labels.Selector {
	exists, err := labels.NewRequirement(v1alpha1.EgressLeaseLabel, selection.Exists, nil)
	if err != nil {
		return labels.Nothing() // it is a constant that a test parses
	}
	return labels.NewSelector().Add(*exists)
}

// podAnnotations are those of pods that the reconcilers read. Anybody who may write a pod may give it 256 KiB of others.
func podAnnotations() []string {
	return []string{
		v1alpha1.IdentityAnnotation, v1alpha1.SubnetAnnotation, v1alpha1.IPsAnnotation, v1alpha1.MACAnnotation, topology.IngressBandwidth, topology.EgressBandwidth,
		nad.Annotation, kubevirtv1.MigrationTargetReadyTimestamp,
	}
}

// stripPod keeps of a cached pod what the reconcilers read: a cluster has many pods, and most of each is its containers.
func stripPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields = nil
	maps.DeleteFunc(pod.Annotations, func(key, _ string) bool { return !slices.Contains(podAnnotations(), key) })
	pod.Spec = corev1.PodSpec{
		NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
		InitContainers: namedPorts(pod.Spec.InitContainers), Containers: namedPorts(pod.Spec.Containers),
	}
	status := corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP}
	if isLauncher(pod) {
		for i := range pod.Status.ContainerStatuses { // whether a launcher's container compute has ended
			c := &pod.Status.ContainerStatuses[i]
			status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, State: c.State})
		}
	}
	pod.Status = status
	return pod, nil
}

// namedPorts keeps of containers the ports that a NetworkPolicy can name. An init container has some only if it runs beside the others.
func namedPorts(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range containers {
		var ports []corev1.ContainerPort
		for _, p := range containers[i].Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: p.Name, Protocol: p.Protocol, ContainerPort: p.ContainerPort})
			}
		}
		if len(ports) > 0 {
			out = append(out, corev1.Container{Ports: ports})
		}
	}
	return out
}

// isLauncher says whether a pod is, by its own word, a VM's launcher.
func isLauncher(pod *corev1.Pod) bool {
	_, _, ok := migration.LauncherOf(pod)
	return ok
}

// syncTimeout is how long a question after readiness waits for the cache: a kubelet's own patience.
const syncTimeout = time.Second

// addReadiness: the leader is ready when it serves pods: it reaches the northbound database and has restored all addresses. Another replica is ready when it
// could take over at once: it reaches the database and has read the API's objects. Were it not, a Deployment would never have all its replicas, and a
// rolling update would stop the leader before another can follow it.
func addReadiness(mgr manager.Manager, nb *ovn.NB, sb *ovn.SB, restore *restoration) error {
	ready := func(*http.Request) error {
		if !nb.Connected() {
			return errors.New("the northbound database cannot be reached")
		}
		return nil
	}
	southbound := func(*http.Request) error {
		if !sb.Connected() {
			return errors.New("the southbound database cannot be reached: migrations cannot be prepared")
		}
		return nil
	}
	synced := func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), syncTimeout)
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
	return errors.Join(mgr.AddReadyzCheck("northbound", ready), mgr.AddReadyzCheck("southbound", southbound),
		mgr.AddReadyzCheck("cache", synced), mgr.AddReadyzCheck("restored", restored),
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

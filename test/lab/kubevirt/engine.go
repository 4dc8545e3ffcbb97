package kubevirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

const (
	// maxSteps bounds what is done for one VM before others have their turn.
	maxSteps = 40
	// backlog is how many launchers' events may wait; beyond that they wait in the launchers.
	backlog = 1024
	// crdPoll and crdTimeout are about the wait for the definitions of KubeVirt's kinds, which are applied when the API server is up.
	crdPoll = 500 * time.Millisecond
)

// Config is what the stand-in needs.
type Config struct {
	API       *rest.Config
	Launchers Launchers
	// Journal takes what QEMU does, a line an Entry; nil for nobody.
	Journal io.Writer
	Log     *slog.Logger
}

// engine is the one reconciler.
type engine struct {
	api     client.Client // not cached
	cache   client.Reader // what the watches have delivered
	domains *domains
	events  events.EventRecorder
	log     *slog.Logger
	// ctx is that of Run: requests to launchers outlive the reconciliation that makes them.
	ctx context.Context //nolint:containedctx // see above
	mu  sync.Mutex
	// due is since when a stage could have been entered.
	due map[stageKey]time.Time
	// held are the stages that are being held, as the journal has it.
	held map[stageKey]bool
}

type stageKey struct {
	of    types.UID
	stage Stage
}

// Run is the stand-in. It waits for the definitions of KubeVirt's kinds, and returns when ctx ends.
func Run(ctx context.Context, c Config) error {
	scheme, err := Scheme()
	if err != nil {
		return err
	}
	api, err := client.New(c.API, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	if err := awaitDefinitions(ctx, api, c.Log); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(c.API, ctrl.Options{
		Scheme: scheme, Logger: logr.FromSlogHandler(c.Log.Handler()), Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return fmt.Errorf("start the stand-in for KubeVirt: %w", err)
	}
	news := make(chan event.TypedGenericEvent[types.NamespacedName], backlog)
	e := &engine{api: api, cache: mgr.GetCache(), events: mgr.GetEventRecorder("virt-controller"), log: c.Log, ctx: ctx, due: map[stageKey]time.Time{}, held: map[stageKey]bool{}}
	e.domains = newDomains(c.Launchers, &journal{w: c.Journal}, c.Log, func(vmi types.NamespacedName) {
		select {
		case news <- event.TypedGenericEvent[types.NamespacedName]{Object: vmi}:
		case <-ctx.Done():
		}
	})
	defer e.domains.close()
	if err := errors.Join(e.watch(mgr, news), mgr.Add(manager.RunnableFunc(e.serveEvictions))); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// Scheme has the kinds of Kubernetes and of KubeVirt.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register the kinds of Kubernetes and KubeVirt: %w", err)
	}
	return scheme, nil
}

// awaitDefinitions returns when all three kinds are served to this user.
func awaitDefinitions(ctx context.Context, api client.Reader, log *slog.Logger) error {
	var told string
	for {
		err := errors.Join(
			api.List(ctx, &kubevirtv1.VirtualMachineList{}, client.Limit(1)),
			api.List(ctx, &kubevirtv1.VirtualMachineInstanceList{}, client.Limit(1)),
			api.List(ctx, &kubevirtv1.VirtualMachineInstanceMigrationList{}, client.Limit(1)),
		)
		if err == nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			log.Info("waiting for KubeVirt's kinds to be served", "err", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for KubeVirt's kinds to be served: %w", errors.Join(ctx.Err(), err))
		case <-time.After(crdPoll):
		}
	}
}

func (e *engine) watch(mgr ctrl.Manager, news <-chan event.TypedGenericEvent[types.NamespacedName]) error {
	skip := true // tests start several in one process
	to := handler.EnqueueRequestsFromMapFunc
	launchers := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetLabels()[kubevirtv1.AppLabel] != "" })
	queue := handler.TypedFuncs[types.NamespacedName, reconcile.Request]{
		GenericFunc: func(_ context.Context, e event.TypedGenericEvent[types.NamespacedName], q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			q.Add(reconcile.Request{NamespacedName: e.Object})
		},
	}
	return ctrl.NewControllerManagedBy(mgr).Named("kubevirt").
		For(&kubevirtv1.VirtualMachineInstance{}).
		Watches(&kubevirtv1.VirtualMachine{}, &handler.EnqueueRequestForObject{}).
		Watches(&kubevirtv1.VirtualMachineInstanceMigration{}, to(ofMigration)).
		Watches(&corev1.Pod{}, to(ofPod), builder.WithPredicates(launchers)).
		WatchesRawSource(source.TypedChannel(news, queue)).
		// One worker: VMs share the limits on migrations, and no step takes long.
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1, SkipNameValidation: &skip,
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 2*time.Second),
		}).
		Complete(e)
}

func ofMigration(_ context.Context, o client.Object) []reconcile.Request {
	m, ok := o.(*kubevirtv1.VirtualMachineInstanceMigration)
	if !ok {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: m.Namespace, Name: m.Spec.VMIName}}}
}

func ofPod(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetAnnotations()[kubevirtv1.DomainAnnotation]
	if name == "" {
		name = o.GetAnnotations()[vmiAnnotation]
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

// Reconcile takes steps until none is to be taken.
func (e *engine) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	for range maxSteps {
		w, err := e.observe(ctx, r.NamespacedName)
		if err != nil {
			return reconcile.Result{}, err
		}
		e.connect(w)
		s := first(w, vmRules, vmiRules, hotplugRules, closingRules, leftoverRules, migrationRules, evacuate, silentNode)
		if s == nil {
			return reconcile.Result{}, nil
		}
		e.noteHold(w.key, s)
		if wait, ok := e.mayTake(s, w.now); !ok {
			return reconcile.Result{RequeueAfter: wait}, nil
		}
		e.log.Debug("step", "vmi", r.String(), "stage", s.stage, "why", s.why)
		if err := s.do(ctx); err != nil {
			if apierrors.IsConflict(err) {
				continue // somebody has changed it; look again
			}
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: time.Millisecond}, nil
}

// statusPatch writes a status where that is a resource of its own.
func (e *engine) statusPatch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	var sub []client.SubResourcePatchOption
	for _, opt := range opts {
		if s, ok := opt.(client.SubResourcePatchOption); ok {
			sub = append(sub, s)
		}
	}
	return e.api.Status().Patch(ctx, o, p, sub...)
}

// warn makes an event that says what is wrong with an object.
func (e *engine) warn(o client.Object, reason, note string) {
	e.events.Eventf(o, nil, corev1.EventTypeWarning, reason, "Reconcile", "%s", note)
}

// mayTake says whether a step may be taken now, or else when to look again; 0 if an event will come.
func (e *engine) mayTake(s *step, now time.Time) (wait time.Duration, ok bool) {
	if s.do == nil {
		return s.wait, false
	}
	if s.stage == "" {
		return 0, true
	}
	if s.knobs.held(s.stage) {
		return 0, false
	}
	delay := s.knobs.delay(s.stage)
	if delay <= 0 {
		return 0, true
	}
	k := stageKey{of: s.of, stage: s.stage}
	e.mu.Lock()
	defer e.mu.Unlock()
	since, seen := e.due[k]
	if !seen {
		e.due[k] = now
		return delay, false
	}
	if left := delay - now.Sub(since); left > 0 {
		return left, false
	}
	delete(e.due, k)
	return 0, true
}

// noteHold tells the journal when a stage begins to be held: a test that waits for it needs to ask nobody.
func (e *engine) noteHold(vmi types.NamespacedName, s *step) {
	if s.stage == "" || s.do == nil {
		return
	}
	k := stageKey{of: s.of, stage: s.stage}
	held := s.knobs.held(s.stage)
	e.mu.Lock()
	was := e.held[k]
	if held {
		e.held[k] = true
	} else {
		delete(e.held, k)
	}
	e.mu.Unlock()
	if held && !was {
		e.domains.journal.held(vmi, s.stage)
	}
}

// connect follows the launchers that run and forgets those that do not.
func (e *engine) connect(w *world) {
	there := map[types.UID]bool{}
	for _, p := range w.launchers {
		if p.Status.Phase == corev1.PodRunning && !down(p) {
			there[p.UID] = true
			e.domains.follow(e.ctx, w.key, p)
		}
	}
	e.domains.gone(w.key, there)
}

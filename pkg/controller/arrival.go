package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// startRetry is how long to wait when definitions exist but their objects cannot be watched yet: a definition is served a moment after it is made.
const startRetry = 250 * time.Millisecond

// arrival watches objects whose kinds may be defined at any time: they can only be watched when they are.
type arrival struct {
	mgr manager.Manager
	log *slog.Logger
	// what is defined, to people, and what that means to them.
	what, means string
	// kinds must all be there; definitions are the names of theirs.
	kinds       []schema.GroupVersionKind
	definitions []string
	// start watches the objects. It is called until it succeeds.
	start func(context.Context) error
}

// add makes the manager watch the objects from its very start if their kinds exist, so that nothing is ever taken for absent that has not been read; else as soon as
// they do.
func (a *arrival) add(ctx context.Context) error {
	for _, kind := range a.kinds {
		_, err := a.mgr.GetRESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) {
			return a.mgr.Add(a)
		}
		if err != nil {
			return fmt.Errorf("find out whether the cluster has %s: %w", a.what, err)
		}
	}
	return a.start(ctx)
}

// Start implements manager.Runnable: it waits for the definitions. Every replica does, so that one that becomes leader has read the objects.
func (a *arrival) Start(ctx context.Context) error {
	defined := &metav1.PartialObjectMetadata{}
	defined.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	informer, err := a.mgr.GetCache().GetInformer(ctx, defined)
	if err != nil {
		return fmt.Errorf("watch CustomResourceDefinitions for those of %s: %w", a.what, err)
	}
	found := make(chan struct{}, 1)
	look := func(obj any) {
		if m, ok := obj.(metav1.Object); ok && slices.Contains(a.definitions, m.GetName()) {
			select {
			case found <- struct{}{}:
			default:
			}
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look}); err != nil {
		return fmt.Errorf("watch CustomResourceDefinitions for those of %s: %w", a.what, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-found:
		}
		missing, err := a.missing(ctx, defined)
		if err == nil && missing == "" {
			return a.begin(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (a *arrival) missing(ctx context.Context, kind *metav1.PartialObjectMetadata) (string, error) {
	for _, name := range a.definitions {
		err := a.mgr.GetCache().Get(ctx, types.NamespacedName{Name: name}, kind.DeepCopy())
		if apierrors.IsNotFound(err) {
			return name, nil
		}
		if err != nil {
			return "", fmt.Errorf("read the CustomResourceDefinition %s: %w", name, err)
		}
	}
	return "", nil
}

// begin watches the objects, trying until it succeeds or ctx ends.
func (a *arrival) begin(ctx context.Context) error {
	for {
		err := a.start(ctx)
		if err == nil {
			a.log.Info(a.what + " is there: " + a.means)
			return nil
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end
		}
		a.log.Warn(a.what+" cannot be watched yet, trying again", "error", err, "in", startRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(startRetry):
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (a *arrival) NeedLeaderElection() bool { return false }

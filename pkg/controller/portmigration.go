package controller

// PortMigration reconciler.
// In:   PortMigrations, with what the agents of both sides observed.
// Out:  status.interruption; deletes the oldest of a VM beyond those that are kept; a trace of each that is over, if that is wanted (trace.go).

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

type portMigrationReconciler struct {
	api     client.Client
	keep    int
	metrics *metrics
	// traces is nil if nobody wants any.
	traces *tracer
	now    func() time.Time
}

// Reconcile implements reconcile.Reconciler.
func (r *portMigrationReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pm v1alpha1.PortMigration
	if err := r.api.Get(ctx, req.NamespacedName, &pm); err != nil {
		if client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("read PortMigration %s: %w", req.NamespacedName, err)
		}
		r.traces.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err := r.write(ctx, &pm); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: r.traces.tell(&pm, r.now())}, r.prune(ctx, &pm)
}

// interruption is the time between the last frame on the source and the moment from which the network heard the VM on the target, for which OVN must let its frames pass there, with the bound
// of what the two clocks may differ by; negative if that is not known. ok is false as long as one side is missing, and for a migration that failed:
// the VM never left then.
func interruption(st v1alpha1.PortMigrationStatus) (d, uncertainty time.Duration, ok bool) {
	if st.Result == v1alpha1.MigrationFailed || st.Source == nil || st.Target == nil || st.Source.LastFrame == nil {
		return 0, 0, false
	}
	first := st.Target.Announced
	if st.Target.Opened != nil && st.Target.FirstFrame != nil && (first == nil || st.Target.FirstFrame.Before(first)) {
		first = st.Target.FirstFrame // the port was open before the announcement
	}
	if st.Target.AnnouncedByAgent && first != nil && st.Target.FirstFrame != nil && first.Before(st.Target.FirstFrame) {
		first = st.Target.FirstFrame // what it sent before the announcement was dropped
	}
	if first == nil {
		return 0, 0, false
	}
	if first.Before(st.Target.Unblocked) {
		first = st.Target.Unblocked // what it sent before was dropped too
	}
	d = first.Sub(st.Source.LastFrame.Time)
	// A frame that left the source when the VM was heard on the target is not the VM's, or the clocks differ by more than the interruption: nothing can be said.
	return d, clockUncertainty(st.Source.Clock, st.Target.Clock), d >= 0
}

// clockUncertainty is by how much two clocks may differ, negative if that is not known.
func clockUncertainty(a, b v1alpha1.Clock) time.Duration {
	switch {
	case a.BootID != "" && a.BootID == b.BootID:
		return 0
	case !a.Synchronized || !b.Synchronized:
		return -1
	}
	return time.Duration(a.MaxErrorMicroseconds+b.MaxErrorMicroseconds) * time.Microsecond
}

// write brings status.interruption to what the agents saw. What was written of a migration that has failed since is taken back.
func (r *portMigrationReconciler) write(ctx context.Context, pm *v1alpha1.PortMigration) error {
	var want *v1alpha1.Interruption
	d, uncertainty, ok := interruption(pm.Status)
	switch {
	case ok:
		want = &v1alpha1.Interruption{Milliseconds: milliseconds(d)}
		if uncertainty >= 0 {
			want.UncertaintyMilliseconds = milliseconds(uncertainty)
		}
	case pm.Status.Result != v1alpha1.MigrationFailed:
		want = pm.Status.Interruption
	}
	if equality.Semantic.DeepEqual(pm.Status.Interruption, want) {
		return nil
	}
	before := pm.DeepCopy()
	pm.Status.Interruption = want
	err := r.api.Status().Patch(ctx, pm, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) {
		return nil // the copy is behind what was written last: its event comes
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the interruption of PortMigration %s/%s: %w", pm.Namespace, pm.Name, err)
	}
	if before.Status.Interruption == nil {
		r.metrics.tellInterruption(pm.Status)
	}
	return nil
}

func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64)
}

// prune deletes the oldest migrations of a VM that are over, beyond those that are kept.
func (r *portMigrationReconciler) prune(ctx context.Context, pm *v1alpha1.PortMigration) error {
	var list v1alpha1.PortMigrationList
	err := r.api.List(ctx, &list, client.InNamespace(pm.Namespace), client.MatchingFields{indexVMI: pm.Spec.VMI.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("list the PortMigrations of VM %s/%s: %w", pm.Namespace, pm.Spec.VMI.Name, err)
	}
	ended := slices.DeleteFunc(list.Items, func(m v1alpha1.PortMigration) bool { return !m.Status.Over() })
	slices.SortFunc(ended, func(a, b v1alpha1.PortMigration) int { return began(b).Compare(began(a)) })
	for i := r.keep; i < len(ended); i++ {
		if err := r.api.Delete(ctx, &ended[i]); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete the old PortMigration %s/%s: %w", ended[i].Namespace, ended[i].Name, err)
		}
	}
	return nil
}

// began is when a migration began, to the microsecond where that is known: creation times have whole seconds.
func began(m v1alpha1.PortMigration) time.Time {
	if at, ok := m.Status.Stage(v1alpha1.StageScheduled); ok {
		return at
	}
	return m.CreationTimestamp.Time
}

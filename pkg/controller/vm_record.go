package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// moment is a decision and when it was made.
type moment struct {
	decision migration.Decision
	// seen is when the objects were read, written when the northbound database had what was decided; wrote says whether it had to be changed.
	seen, written time.Time
	wrote         bool
}

// record keeps the PortMigrations of a VM: the one that is under way, and the end of those that are not any more. A migration has one for each target pod: KubeVirt makes another when the first one goes while it waits,
// perhaps on another node, and all that a record says is of one target.
func (r *vmReconciler) record(ctx context.Context, vm types.NamespacedName, o observed, s migration.Snapshot, m moment) error {
	var list v1alpha1.PortMigrationList
	err := r.api.List(ctx, &list, client.InNamespace(vm.Namespace), client.MatchingFields{indexVMI: vm.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("list PortMigrations: %w", err)
	}
	var current *v1alpha1.PortMigration
	var errs []error
	for i := range list.Items {
		pm := &list.Items[i]
		switch {
		case of(m.decision, pm):
			current = pm
		case pm.Status.Over():
		case superseded(pm, s):
			if gone, err := r.targetGone(ctx, pm, s); err != nil || !gone {
				return errors.Join(append(errs, err)...) // of a new leader's caches that of pods may be the older one
			}
			err := r.writeRecord(ctx, pm, func(st v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus { return forsaken(st, m) })
			if err != nil {
				return err // the next one is not made before it is over: agents take the one that is not
			}
		default:
			errs = append(errs, r.writeRecord(ctx, pm, func(st v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus {
				return concluded(st, s, string(pm.Spec.Migration.UID), m)
			}))
		}
	}
	if current == nil {
		if o.vmi == nil || !recordable(m.decision, s) {
			return errors.Join(errs...)
		}
		if current, err = r.newRecord(ctx, o, s, m); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	errs = append(errs, r.writeRecord(ctx, current, func(st v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus { return progressed(st, s, m) }))
	return errors.Join(errs...)
}

// of says whether a record is of a decision's migration, to its target. A decision that knows no target pod, as when that has gone, is about the one that is not over.
func of(d migration.Decision, pm *v1alpha1.PortMigration) bool {
	if d.Migration == "" || string(pm.Spec.Migration.UID) != d.Migration {
		return false
	}
	return d.Target.UID == string(pm.Spec.Target.Pod.UID) || d.Target.UID == "" && !pm.Status.Over()
}

// superseded: KubeVirt has made the target of a record's migration anew.
func superseded(pm *v1alpha1.PortMigration, s migration.Snapshot) bool {
	target, job := string(pm.Spec.Target.Pod.UID), string(pm.Spec.Migration.UID)
	return !slices.ContainsFunc(s.Launchers, func(l migration.Launcher) bool { return l.UID == target && !l.NodeGone }) &&
		slices.ContainsFunc(s.Launchers, func(l migration.Launcher) bool { return l.UID != target && l.Job == job })
}

// targetGone asks the API server whether a record's target pod, which is none of the launchers, has ended or is not there. One that is among them has gone with its node.
func (r *vmReconciler) targetGone(ctx context.Context, pm *v1alpha1.PortMigration, s migration.Snapshot) (bool, error) {
	if slices.ContainsFunc(s.Launchers, func(l migration.Launcher) bool { return l.UID == string(pm.Spec.Target.Pod.UID) }) {
		return true, nil
	}
	var pod corev1.Pod
	err := r.live.Get(ctx, types.NamespacedName{Namespace: pm.Namespace, Name: pm.Spec.Target.Pod.Name}, &pod)
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read pod %s, the target of PortMigration %s: %w", pm.Spec.Target.Pod.Name, pm.Name, err)
	}
	return pod.UID != pm.Spec.Target.Pod.UID || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, nil
}

// recordable: a record is made of a migration that exists, once its target has a node. What a pod's label alone tells of, nobody asked for.
func recordable(d migration.Decision, s migration.Snapshot) bool {
	return d.Migration != "" && d.Source.Chassis != "" && d.Target.Chassis != "" && outcome(s, d.Migration).Seen
}

// newRecord creates the PortMigration of a decision's migration and target, or reads the one that the cache does not have yet.
func (r *vmReconciler) newRecord(ctx context.Context, o observed, s migration.Snapshot, m moment) (*v1alpha1.PortMigration, error) {
	d := m.decision
	name := d.Migration
	for _, known := range s.Migrations {
		if known.UID == d.Migration && known.Name != "" {
			name = known.Name
		}
	}
	end := func(l migration.Launcher) v1alpha1.MigrationEnd {
		return v1alpha1.MigrationEnd{Node: string(l.Chassis), Pod: v1alpha1.ObjectName{Name: l.Name, UID: types.UID(l.UID)}}
	}
	pm := &v1alpha1.PortMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.vmi.Namespace},
		Spec: v1alpha1.PortMigrationSpec{
			VMI:       v1alpha1.ObjectName{Name: o.vmi.Name, UID: o.vmi.UID},
			Migration: v1alpha1.ObjectName{Name: name, UID: types.UID(d.Migration)},
			Source:    end(d.Source), Target: end(d.Target),
		},
	}
	for _, p := range d.Ports {
		if p.Want.Requested == string(ident.NoChassis) {
			continue // of a network that neither launcher is on
		}
		port := o.ports[p.Network]
		if port == nil {
			return nil, fmt.Errorf("migration %s: network %s has a row and no Port yet", name, p.Network)
		}
		pm.Spec.Ports = append(pm.Spec.Ports, v1alpha1.MigratedPort{Network: p.Network, Name: string(p.Name), MAC: port.Status.MAC})
		pm.OwnerReferences = append(pm.OwnerReferences, metav1.OwnerReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "Port", Name: port.Name, UID: port.UID, // its history goes with the VM's identity
		})
	}
	return r.createRecord(ctx, pm)
}

// createRecord names a PortMigration and creates it, or reads the one that there is. The name follows from the migration's, and has digits of the UID: names are used again. Of a target that was made anew it has digits of the
// pod's UID too.
func (r *vmReconciler) createRecord(ctx context.Context, pm *v1alpha1.PortMigration) (*v1alpha1.PortMigration, error) {
	vmim, target := pm.Spec.Migration, pm.Spec.Target.Pod.UID
	var err error
	for _, unique := range []types.UID{vmim.UID, vmim.UID + "/" + target} {
		pm := pm.DeepCopy()
		pm.Name = longName(vmim.Name, string(unique))
		if err = r.api.Create(ctx, pm); apierrors.IsAlreadyExists(err) {
			have := &v1alpha1.PortMigration{}
			if err := r.live.Get(ctx, client.ObjectKeyFromObject(pm), have); err != nil {
				return nil, fmt.Errorf("read PortMigration %s, which was created meanwhile: %w", pm.Name, err)
			}
			if have.Spec.Target.Pod.UID != target {
				continue // of the target before
			}
			return have, nil
		}
		if err != nil {
			return nil, fmt.Errorf("create PortMigration %s: %w", pm.Name, err)
		}
		return pm, nil
	}
	return nil, fmt.Errorf("create a PortMigration of migration %s: both of its names are taken: %w", vmim.Name, err)
}

// recordAttempts bounds how often a status is written that others write too.
const recordAttempts = 5

// writeRecord brings the status of a PortMigration to what follows from it. The cache may be behind what was written last: then the status is read anew, for a moment
// that is not noted now is lost.
func (r *vmReconciler) writeRecord(ctx context.Context, pm *v1alpha1.PortMigration, follow func(v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus) error {
	for range recordAttempts {
		next := follow(pm.Status)
		if equality.Semantic.DeepEqual(pm.Status, next) {
			return nil
		}
		after := pm.DeepCopy()
		after.Status = next
		err := r.api.Status().Patch(ctx, after, client.MergeFromWithOptions(pm, client.MergeFromWithOptimisticLock{}))
		if apierrors.IsConflict(err) {
			fresh := &v1alpha1.PortMigration{}
			if err = r.live.Get(ctx, client.ObjectKeyFromObject(pm), fresh); err == nil {
				pm = fresh
				continue
			}
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("write the status of PortMigration %s: %w", pm.Name, err)
		}
		r.recorded(pm, next)
		return nil
	}
	return fmt.Errorf("write the status of PortMigration %s: it was changed by others %d times meanwhile", pm.Name, recordAttempts)
}

// recorded counts what a status says that the one before did not.
func (r *vmReconciler) recorded(pm *v1alpha1.PortMigration, next v1alpha1.PortMigrationStatus) {
	if next.Over() && !pm.Status.Over() {
		r.metrics.migrations.WithLabelValues(string(next.Result), next.Reason).Inc()
		r.timeStages(next)
		r.metrics.tellInterruption(next)
		r.tellLeft(pm, next)
		r.log.Info("migration over", "migration", pm.Spec.Migration.Name, "vm", pm.Namespace+"/"+pm.Spec.VMI.Name, "result", next.Result, "reason", next.Reason)
	}
	_, was := pm.Status.Stage(v1alpha1.StagePrepared)
	at, is := next.Stage(v1alpha1.StagePrepared)
	if from, ok := next.Stage(v1alpha1.StageScheduled); is && ok && !was {
		r.metrics.prepared.Observe(at.Sub(from).Seconds())
	}
}

// timedStage is a part of a migration whose time is told.
type timedStage struct {
	name     string
	from, to v1alpha1.StageName
}

func timedStages() []timedStage {
	return []timedStage{
		{"transfer", v1alpha1.StagePrepared, v1alpha1.StageActivated},
		{"commit", v1alpha1.StageActivated, v1alpha1.StageCommitted},
		{"completion", v1alpha1.StageCommitted, v1alpha1.StageCompleted},
	}
}

// timeStages tells how long the stages of a migration took, those that it had.
func (r *vmReconciler) timeStages(st v1alpha1.PortMigrationStatus) {
	if st.Result != v1alpha1.MigrationSucceeded {
		return
	}
	for _, s := range timedStages() {
		from, began := st.Stage(s.from)
		to, ended := st.Stage(s.to)
		if began && ended {
			r.metrics.stages.WithLabelValues(s.name).Observe(to.Sub(from).Seconds())
		}
	}
}

// progressed is the status of a migration that a decision is about. Stages that were noted stay as they are.
func progressed(st v1alpha1.PortMigrationStatus, s migration.Snapshot, m moment) v1alpha1.PortMigrationStatus {
	d := m.decision
	st.Stages = slices.Clone(st.Stages)
	if st.Over() && d.Phase != migration.Committed {
		return st // it was called over, and what is seen of it may be older than that
	}
	st.Phase, st.Reason, st.Message = string(d.Phase), string(d.Reason), d.Message
	if st.Result == "" {
		st.Result = v1alpha1.MigrationRunning
	}
	note(&st, v1alpha1.StageScheduled, m.seen)
	at := m.seen
	if m.wrote {
		at = m.written
	}
	known := outcome(s, d.Migration)
	switch d.Phase {
	case migration.Prepared:
		note(&st, v1alpha1.StagePrepared, at)
	case migration.Activated, migration.PostCopy:
		note(&st, v1alpha1.StageActivated, m.seen)
	case migration.Committed:
		if slices.ContainsFunc(s.Ports, func(p migration.Port) bool { return slices.Contains(p.Activated, d.Target.Chassis) }) {
			note(&st, v1alpha1.StageActivated, m.seen) // seen together with readiness
		}
		note(&st, v1alpha1.StageReady, m.seen)
		note(&st, v1alpha1.StageCommitted, at)
	case migration.RolledBack:
		note(&st, v1alpha1.StageRolledBack, at)
	}
	switch {
	case d.Phase == migration.Committed && known.Succeeded:
		st.Result = v1alpha1.MigrationSucceeded
	case d.Phase == migration.RolledBack && (known.Failed || !known.Seen):
		st.Result = v1alpha1.MigrationFailed
	}
	if d.Phase == migration.Prepared && d.Reason == migration.ReasonNotActivated {
		note(&st, v1alpha1.StageReady, m.seen)
	}
	if st.Over() {
		note(&st, v1alpha1.StageCompleted, at)
	}
	return st
}

// concluded is the status of a migration that no decision is about any more: the rows tell how it ended.
func concluded(st v1alpha1.PortMigrationStatus, s migration.Snapshot, uid string, m moment) v1alpha1.PortMigrationStatus {
	st.Stages = slices.Clone(st.Stages)
	at := m.seen
	if m.wrote {
		at = m.written
	}
	known := outcome(s, uid)
	stamp, phase := s.Last()
	if stamp.Migration != uid {
		phase = ""
	}
	switch {
	case known.Succeeded, phase == migration.Committed && !known.Failed: // the rows of one that failed name the target where the source's node is gone
		st.Result = v1alpha1.MigrationSucceeded
		if st.Phase != string(migration.Committed) {
			st.Phase, st.Reason, st.Message = string(migration.Committed), string(migration.ReasonMigrationSucceeded), "the VM runs on the target"
		}
		note(&st, v1alpha1.StageCommitted, at)
	case phase == migration.RolledBack, known.Failed, !known.Seen, m.decision.Phase == migration.Stopped:
		st.Result = v1alpha1.MigrationFailed
		if st.Phase != string(migration.RolledBack) {
			st.Phase, st.Reason, st.Message = string(m.decision.Phase), string(m.decision.Reason), m.decision.Message
		}
	default:
		return st // it is not over, and the rows do not tell: they are about to change, or what is seen contradicts itself
	}
	note(&st, v1alpha1.StageCompleted, at)
	return st
}

// forsaken is the status of a migration to a target that is gone, and in whose place KubeVirt has made another.
func forsaken(st v1alpha1.PortMigrationStatus, m moment) v1alpha1.PortMigrationStatus {
	st.Stages = slices.Clone(st.Stages)
	st.Result = v1alpha1.MigrationFailed
	if st.Phase != string(migration.RolledBack) {
		st.Phase, st.Reason, st.Message = string(migration.RolledBack), string(migration.ReasonTargetGone), "the target pod is gone, and KubeVirt has made another, of which there is a record of its own"
	}
	note(&st, v1alpha1.StageCompleted, m.seen)
	return st
}

// outcome is what is known of a migration, the zero value if nothing is.
func outcome(s migration.Snapshot, uid string) migration.Migration {
	for _, m := range s.Migrations {
		if m.UID == uid {
			return m
		}
	}
	return migration.Migration{}
}

// note adds a stage that has not been noted yet.
func note(st *v1alpha1.PortMigrationStatus, name v1alpha1.StageName, at time.Time) {
	if _, ok := st.Stage(name); !ok {
		st.Stages = append(st.Stages, v1alpha1.Stage{Name: name, Time: metav1.NewMicroTime(at)})
	}
}

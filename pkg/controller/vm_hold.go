package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// handoffPatience is for how long the ports of a VM that runs on the target stay asked for on both nodes until the last of its connections are handed over: what comes from the source
// later is lost, for OVN flushes its zone there, and what comes to the target before is cloned to both.
const handoffPatience = time.Second

// hold is a migration whose commit waits for connections that are handed over.
type hold struct {
	migration string
	since     time.Time
}

// holds says for how long a decision to commit waits, unless the source's agent tells its PortMigration before that it has come to the end; 0 is not at all. The agent learns by the stage
// Ready that it is time for the last connections. A migration is held once: what hinders the rows from being written after its time does not hold it again.
func (r *vmReconciler) holds(ctx context.Context, vm types.NamespacedName, d migration.Decision, at time.Time) (time.Duration, error) {
	pm, err := r.handingOver(ctx, vm, d)
	if err != nil || pm == nil {
		return 0, err
	}
	r.mu.Lock()
	h := r.held[vm]
	if h.migration != d.Migration {
		h = hold{migration: d.Migration, since: at}
		r.held[vm] = h
	}
	r.mu.Unlock()
	left := handoffPatience - at.Sub(h.since)
	if left <= 0 {
		r.log.Warn("connections of a VM are not handed over to the end, its ports are the target's now", "vm", vm, "migration", pm.Spec.Migration.Name, "waited", handoffPatience)
		return 0, nil
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	err = r.writeRecord(ctx, pm, func(st v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus {
		st.Stages = slices.Clone(st.Stages)
		note(&st, v1alpha1.StageReady, at)
		return st
	})
	if err != nil { // the agent is not told, and the rows wait no longer than they would
		r.log.Warn("the source's agent may not know that the VM runs on the target", "vm", vm, "error", err)
	}
	return max(0, left-time.Since(asked)), nil
}

// handingOver is the PortMigration of a decision to commit whose source hands connections over and has not come to the end; nil if that is not so.
func (r *vmReconciler) handingOver(ctx context.Context, vm types.NamespacedName, d migration.Decision) (*v1alpha1.PortMigration, error) {
	if d.Phase != migration.Committed || d.Source.Chassis == "" {
		return nil, nil //nolint:nilnil // documented
	}
	var list v1alpha1.PortMigrationList
	if err := r.api.List(ctx, &list, client.InNamespace(vm.Namespace), client.MatchingFields{indexVMI: vm.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list PortMigrations: %w", err)
	}
	for i := range list.Items {
		pm := &list.Items[i]
		if !of(d, pm) || pm.Status.Over() || pm.Status.Source == nil {
			continue
		}
		if c := pm.Status.Source.Connections; c != nil && c.Began != nil && c.Ended == nil {
			return pm, nil
		}
	}
	return nil, nil //nolint:nilnil // documented
}

// tellLeft makes an event of connections that were not handed over.
func (r *vmReconciler) tellLeft(pm *v1alpha1.PortMigration, st v1alpha1.PortMigrationStatus) {
	var left, refused int64
	if st.Source != nil && st.Source.Connections != nil {
		left = st.Source.Connections.Left
	}
	if st.Target != nil && st.Target.Connections != nil {
		refused = st.Target.Connections.Refused
	}
	if left+refused > 0 {
		r.events.Eventf(pm, nil, corev1.EventTypeWarning, "ConnectionsLeft", "Migrate",
			"%d connections of the VM were not handed over, %d the target did not take: those that Services, NAT or policies do not let begin in the middle are broken", left, refused)
	}
}

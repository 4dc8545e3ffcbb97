package kubevirt

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
)

// firstBackoff is how long the next evacuation of a VM waits after one that failed; it doubles with each further one.
const firstBackoff = 20 * time.Second

// evacuate is virt-controller's: a VM that is marked to leave its node gets migrations, one after another, until it has left or the mark is taken away.
// The mark goes when the VM arrives (see detect), and not with the eviction or the node's taint that it came from.
func evacuate(w *world) *step {
	vmi := w.vmi
	switch {
	case vmi == nil, vmiFinal(vmi), vmi.DeletionTimestamp != nil:
		return nil
	case !vmi.IsMarkedForEviction(), vmi.Status.EvacuationNodeName != vmi.Status.NodeName, !movesOnEviction(vmi), !vmi.IsMigratable():
		return nil
	case slices.ContainsFunc(w.vmims, func(m *kubevirtv1.VirtualMachineInstanceMigration) bool { return !vmimFinal(m) }):
		return nil
	case slices.ContainsFunc(w.launchers, func(p *corev1.Pod) bool { return p != w.current() && !down(p) }):
		return waits("a launcher of the migration before has not ended", 0)
	}
	return w.create(&kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: vmi.Namespace, GenerateName: "kubevirt-evacuation-",
			Annotations: map[string]string{kubevirtv1.EvacuationMigrationAnnotation: vmi.Status.NodeName},
		},
		Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi.Name, Priority: ptr(kubevirtv1.PrioritySystemCritical)},
	})
}

// movesOnEviction: the VM is to migrate when its pod is to be evicted. Without a strategy it does not.
func movesOnEviction(vmi *kubevirtv1.VirtualMachineInstance) bool {
	if vmi.Spec.EvictionStrategy == nil {
		return false
	}
	switch *vmi.Spec.EvictionStrategy {
	case kubevirtv1.EvictionStrategyLiveMigrate:
		return true
	case kubevirtv1.EvictionStrategyLiveMigrateIfPossible:
		return vmi.IsMigratable()
	}
	return false
}

// backoff is for how long an evacuation has to wait because those of the VM before it have failed since the last that succeeded. Cancelled ones do not count,
// migrations that somebody asked for neither wait nor count.
func (m *vmim) backoff() time.Duration {
	evacuations := slices.DeleteFunc(slices.Clone(m.w.vmims), func(o *kubevirtv1.VirtualMachineInstanceMigration) bool {
		_, evacuates := o.Annotations[kubevirtv1.EvacuationMigrationAnnotation]
		return !evacuates || o.DeletionTimestamp != nil
	})
	var wait time.Duration
	var last time.Time
	for _, o := range evacuations {
		switch {
		case o.UID == m.UID:
			return max(0, last.Add(wait).Sub(m.w.now))
		case o.Status.Phase == kubevirtv1.MigrationSucceeded:
			wait = 0
		case o.Status.Phase == kubevirtv1.MigrationFailed:
			wait, last = max(firstBackoff, 2*wait), failedAt(o)
		}
	}
	return 0
}

func failedAt(m *kubevirtv1.VirtualMachineInstanceMigration) time.Time {
	for _, t := range m.Status.PhaseTransitionTimestamps {
		if t.Phase == kubevirtv1.MigrationFailed {
			return t.PhaseTransitionTimestamp.Time
		}
	}
	return time.Time{}
}

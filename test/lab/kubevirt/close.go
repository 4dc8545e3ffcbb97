package kubevirt

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// keptMigrations is how many finished migrations of a VM are kept: KubeVirt's own number.
const keptMigrations = 5

// cancelled: a migration is cancelled by deleting it. Before the hand-off its target pod is deleted, and the VMI learns nothing of it.
func (m *vmim) cancelled() *step {
	if m.DeletionTimestamp == nil {
		return nil
	}
	if m.w.vmi == nil || !m.handedOff() {
		if m.target != nil && !down(m.target) && m.target.DeletionTimestamp == nil {
			return m.w.remove(m.target, "its migration was cancelled")
		}
		return m.at(StageFailed, m.w.phase(m.VirtualMachineInstanceMigration, kubevirtv1.MigrationFailed))
	}
	state := m.w.state()
	if state.Completed || state.EndTimestamp != nil {
		return nil // too late
	}
	abort := m.w.changeVMI("abort", func(vmi *kubevirtv1.VirtualMachineInstance) { vmi.Status.MigrationState.AbortRequested = true })
	if abort != nil {
		return m.at(StageAbort, abort)
	}
	if !hasCondition(m.VirtualMachineInstanceMigration, kubevirtv1.VirtualMachineInstanceMigrationAbortRequested) {
		return m.w.changeVMIMStatus(m.VirtualMachineInstanceMigration, "abort requested", func(o *kubevirtv1.VirtualMachineInstanceMigration) {
			o.Status.Conditions = append(o.Status.Conditions, kubevirtv1.VirtualMachineInstanceMigrationCondition{
				Type: kubevirtv1.VirtualMachineInstanceMigrationAbortRequested, Status: corev1.ConditionTrue,
				LastProbeTime: metav1.NewTime(m.w.now), LastTransitionTime: metav1.NewTime(m.w.now),
			})
		})
	}
	return m.abort()
}

// abort is the source handler's. A guest that has arrived already is not called back.
func (m *vmim) abort() *step {
	source := m.w.pod(m.w.state().SourcePod)
	if source == nil {
		return nil
	}
	v := m.w.view(source.UID)
	if v.wasAsked(m.requestName("migrate")) {
		if v.migration() == guest.Completed || m.target != nil && m.w.view(m.target.UID).ran {
			return nil
		}
		s := m.w.request(source, m.requestName("cancel"), func(ctx context.Context, l Launcher) error { return l.CancelMigration(ctx) })
		if s != nil {
			return m.at(StageAborted, s)
		}
		if v.migration() != guest.Cancelled && v.migration() != guest.Failed {
			return waits("QEMU gives the migration up", limitPoll)
		}
	}
	return m.w.changeVMI("aborted", func(vmi *kubevirtv1.VirtualMachineInstance) {
		vmi.Status.MigrationState.AbortStatus = kubevirtv1.MigrationAbortSucceeded
		m.fail(vmi, "Live migration has been aborted")
	})
}

// lost: the migration has failed when the VMI says so, and when its target is gone.
func (m *vmim) lost() *step {
	state := m.w.state()
	if m.handedOff() && state.Failed {
		return m.at(StageFailed, m.w.phase(m.VirtualMachineInstanceMigration, kubevirtv1.MigrationFailed))
	}
	if m.Status.Phase == "" || m.Status.Phase == kubevirtv1.MigrationPending && m.target == nil && !m.preparing() {
		return nil
	}
	if m.target != nil && !down(m.target) {
		return nil
	}
	if m.handedOff() {
		if s := m.takeBack(); s != nil {
			return s
		}
	}
	return m.at(StageFailed, m.w.phase(m.VirtualMachineInstanceMigration, kubevirtv1.MigrationFailed))
}

// preparing: the migration has had a target pod. One that is Pending may have lost it.
func (m *vmim) preparing() bool { return m.Status.Phase != kubevirtv1.MigrationPending }

// takeBack lets a source go on that has sent everything to a target that is no more.
func (m *vmim) takeBack() *step {
	source := m.w.pod(m.w.state().SourcePod)
	if source == nil || down(source) {
		return nil
	}
	v := m.w.view(source.UID)
	if m.w.state().Mode == kubevirtv1.MigrationPostCopy {
		return m.w.request(source, m.requestName("crash"), func(ctx context.Context, l Launcher) error { return l.Kill(ctx) }) // what it has is out of date
	}
	switch {
	case v.State == guest.Migrated:
		return m.w.request(source, m.requestName("take back"), func(ctx context.Context, l Launcher) error { return l.Resume(ctx) })
	case v.migration() == guest.PreSwitchover:
		// It notices that there is no target any more when it sends something.
		return m.w.request(source, m.requestName("switchover"), func(ctx context.Context, l Launcher) error { return l.ContinueMigration(ctx) })
	case v.State == guest.Paused:
		return waits("the source has not taken the VM back yet", limitPoll)
	}
	return nil
}

// failed notes in the VMI that the migration has failed; lost then takes it from there.
func (m *vmim) failed(why string) *step {
	return m.w.changeVMI("the migration has failed: "+why, func(vmi *kubevirtv1.VirtualMachineInstance) { m.fail(vmi, why) })
}

func (m *vmim) fail(vmi *kubevirtv1.VirtualMachineInstance, why string) {
	state := vmi.Status.MigrationState
	if state.EndTimestamp == nil {
		now := metav1.NewTime(m.w.now)
		state.EndTimestamp = &now
	}
	state.Completed, state.Failed = true, true
	if state.FailureReason == "" {
		state.FailureReason = strings.TrimSuffix(why, ": ")
	}
}

// close completes the records of a migration that has ended, and lets it go.
func (m *vmim) close() *step {
	if m.w.vmi != nil && m.handedOff() && !m.w.state().Completed {
		if s := m.failed("Target pod is down"); s != nil {
			return s
		}
	}
	if m.w.vmi != nil && m.handedOff() && controllerutil.ContainsFinalizer(m, kubevirtv1.VirtualMachineInstanceMigrationFinalizer) {
		s := m.w.changeVMIMStatus(m.VirtualMachineInstanceMigration, "record", func(o *kubevirtv1.VirtualMachineInstanceMigration) {
			if !equality.Semantic.DeepEqual(o.Status.MigrationState, m.w.state()) {
				o.Status.MigrationState = m.w.state().DeepCopy()
			}
		})
		if s != nil {
			return m.at(StageRecord, s)
		}
	}
	s := m.w.changeVMIM(m.VirtualMachineInstanceMigration, "finalizer", func(o *kubevirtv1.VirtualMachineInstanceMigration) {
		o.Finalizers = without(o.Finalizers, kubevirtv1.VirtualMachineInstanceMigrationFinalizer)
		if len(o.Finalizers) == 0 {
			o.Finalizers = nil
		}
	})
	return m.at(StageFinalize, s)
}

// collect deletes the oldest finished migrations of a VM that has too many, with the finished pods that they took the VM from.
func collect(w *world) *step {
	var finished []*kubevirtv1.VirtualMachineInstanceMigration
	for _, m := range w.vmims {
		if vmimFinal(m) && m.DeletionTimestamp == nil {
			finished = append(finished, m)
		}
	}
	if len(finished) <= keptMigrations {
		return nil
	}
	oldest := finished[0]
	if s := oldest.Status.MigrationState; s != nil {
		name := s.SourcePod
		if s.Failed {
			name = s.TargetPod
		}
		if p := w.pod(name); p != nil && p != w.current() && down(p) && p.DeletionTimestamp == nil {
			return w.remove(p, "its migration is forgotten")
		}
	}
	return w.remove(oldest, "there are newer ones")
}

// leftoverRules are about launchers that nothing needs any more.
func leftoverRules(w *world) *step {
	if w.vmi == nil {
		return nil
	}
	return first(w, leftoverLaunchers, targetLabel)
}

// leftoverLaunchers ends those that have no part in the VM's life: the source of a migration that succeeded, the target of one that failed.
func leftoverLaunchers(w *world) *step {
	current := w.current()
	for _, p := range w.launchers {
		if down(p) || p.DeletionTimestamp != nil || p == current && !vmiFinal(w.vmi) || w.needed(p) {
			continue
		}
		v := w.view(p.UID)
		leave := w.request(p, requestLeave, func(ctx context.Context, l Launcher) error { return l.Leave(ctx) })
		switch {
		case !v.connected && p.Status.Phase == corev1.PodPending:
			return w.remove(p, "nothing needs it")
		case leave == nil || leave.do == nil: // asked already, or there is nobody to ask
			continue
		}
		return leave.on(StageSourceEnds, w.vmi, w.migrationObjects()...)
	}
	return nil
}

// migrationObjects are the VM's migrations, for their knobs: the newest.
func (w *world) migrationObjects() []metav1.Object {
	if len(w.vmims) == 0 {
		return nil
	}
	return []metav1.Object{w.vmims[len(w.vmims)-1]}
}

// needed: a migration that has not ended needs the pod.
func (w *world) needed(p *corev1.Pod) bool {
	s := w.state()
	if s.MigrationUID != "" && !s.Completed && (p.Name == s.SourcePod || p.Name == s.TargetPod) {
		return !vmiFinal(w.vmi)
	}
	return !vmiFinal(w.vmi) && slices.ContainsFunc(w.vmims, func(m *kubevirtv1.VirtualMachineInstanceMigration) bool {
		return !vmimFinal(m) && p.Labels[kubevirtv1.MigrationJobLabel] == string(m.UID)
	})
}

// targetLabel removes the VMI's label of the target's node when the migration's other pod has ended.
func targetLabel(w *world) *step {
	s := w.state()
	if s.MigrationUID == "" || !s.Completed {
		return nil
	}
	other := w.pod(s.SourcePod)
	if s.Failed {
		other = w.pod(s.TargetPod)
	}
	if other != nil && !down(other) {
		return nil
	}
	return w.changeVMI("target label", func(vmi *kubevirtv1.VirtualMachineInstance) {
		delete(vmi.Labels, kubevirtv1.MigrationTargetNodeNameLabel)
	})
}

// silentNode looks again at a VMI whose node does not report: no event will come.
func silentNode(w *world) *step {
	if w.vmi == nil || vmiFinal(w.vmi) || w.silence() == 0 {
		return nil
	}
	return waits("the node does not report", time.Second)
}

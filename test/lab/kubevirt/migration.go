package kubevirt

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

const (
	maxOutbound = 2 // migrations that leave a node at a time
	maxCluster  = 5 // migrations in the cluster at a time
	// crowdPoll is how often a migration that waits for others looks whether it may go on, limitPoll how often one that waits for its own QEMU does.
	crowdPoll = time.Second
	limitPoll = 200 * time.Millisecond
	// unschedulableTimeout and pendingTimeout are how long a target pod that cannot be scheduled, or does not start, is kept.
	unschedulableTimeout = 5 * time.Minute
	pendingTimeout       = 15 * time.Minute
)

// vmim is one migration, with what belongs to it.
type vmim struct {
	*kubevirtv1.VirtualMachineInstanceMigration
	w *world
	// target is the pod that it made, nil if there is none (any more).
	target *corev1.Pod
}

// closingRules are virt-controller's for migrations that have ended.
func closingRules(w *world) *step {
	for _, m := range w.vmims {
		if vmimFinal(m) {
			if s := (&vmim{VirtualMachineInstanceMigration: m, w: w, target: w.target(m)}).close(); s != nil {
				return s
			}
		}
	}
	return collect(w)
}

// migrationRules are virt-controller's and virt-handler's for the oldest migration that has not ended. Others wait.
func migrationRules(w *world) *step {
	for _, m := range w.vmims {
		if !vmimFinal(m) {
			return (&vmim{VirtualMachineInstanceMigration: m, w: w, target: w.target(m)}).advance()
		}
	}
	return nil
}

func (m *vmim) knobs() knobs {
	if m.w.vmi == nil {
		return knobsOf(m)
	}
	return knobsOf(m, m.w.vmi)
}

// at says at which stage of this migration a step is.
func (m *vmim) at(stage Stage, s *step) *step {
	if m.w.vmi == nil {
		return s.on(stage, m)
	}
	return s.on(stage, m, m.w.vmi)
}

// handedOff: the VMI's record is about this migration.
func (m *vmim) handedOff() bool { return m.w.state().MigrationUID == m.UID }

func (m *vmim) to(phase kubevirtv1.VirtualMachineInstanceMigrationPhase) *step {
	return m.at(Stage(phase), m.w.phase(m.VirtualMachineInstanceMigration, phase))
}

func (m *vmim) advance() *step {
	if s := first(m.w, m.rule((*vmim).admission), m.rule((*vmim).cancelled), m.rule((*vmim).refused), m.rule((*vmim).lost)); s != nil {
		return s
	}
	switch m.Status.Phase {
	case kubevirtv1.MigrationPhaseUnset:
		return m.accept()
	case kubevirtv1.MigrationPending:
		return m.prepare()
	case kubevirtv1.MigrationScheduling:
		if containersReady(m.target) {
			return m.to(kubevirtv1.MigrationScheduled)
		}
		return m.overdue()
	case kubevirtv1.MigrationScheduled:
		if !m.handedOff() {
			return m.at(StageHandOff, m.handOff())
		}
		return m.to(kubevirtv1.MigrationPreparingTarget)
	case kubevirtv1.MigrationPreparingTarget:
		return m.prepareTarget()
	case kubevirtv1.MigrationTargetReady:
		return m.start()
	case kubevirtv1.MigrationRunning:
		return m.run()
	default:
		return nil
	}
}

func (m *vmim) rule(f func(*vmim) *step) rule { return func(*world) *step { return f(m) } }

// admission does what KubeVirt's webhook does, where the policy of admission.yaml has not, and notes the version of the API.
func (m *vmim) admission() *step {
	if m.DeletionTimestamp != nil {
		return nil
	}
	return m.w.changeVMIM(m.VirtualMachineInstanceMigration, "admission", func(m *kubevirtv1.VirtualMachineInstanceMigration) {
		controllerutil.AddFinalizer(m, kubevirtv1.VirtualMachineInstanceMigrationFinalizer)
		if len(m.Spec.VMIName) <= validation.LabelValueMaxLength { // KubeVirt makes a hash of a longer name; nothing here looks for it
			metav1.SetMetaDataLabel(&m.ObjectMeta, kubevirtv1.MigrationSelectorLabel, m.Spec.VMIName)
		}
		for _, a := range observedAnnotations {
			metav1.SetMetaDataAnnotation(&m.ObjectMeta, a, observedVersion)
		}
	})
}

// refused: KubeVirt's webhook refuses such migrations; here they fail.
func (m *vmim) refused() *step {
	var why string
	switch {
	case m.w.vmi == nil:
		why = "there is no VirtualMachineInstance " + m.Spec.VMIName
	case vmiFinal(m.w.vmi):
		why = "VirtualMachineInstance " + m.Spec.VMIName + " has ended"
	case m.Status.Phase == "" && m.w.vmi.Status.Phase == kubevirtv1.Running && !conditionTrue(m.w.vmi, kubevirtv1.VirtualMachineInstanceIsMigratable):
		why = "VirtualMachineInstance " + m.Spec.VMIName + " is not migratable: see its condition LiveMigratable"
	case m.knobs().check() != nil:
		why = m.knobs().check().Error()
	default:
		return nil
	}
	m.w.engine.warn(m.VirtualMachineInstanceMigration, "MigrationFailed", why)
	return m.at(StageFailed, m.w.phase(m.VirtualMachineInstanceMigration, kubevirtv1.MigrationFailed))
}

// accept: the VM runs, so the migration may begin.
func (m *vmim) accept() *step {
	source := m.w.current()
	if m.w.vmi.Status.Phase != kubevirtv1.Running || m.w.vmi.DeletionTimestamp != nil || source == nil {
		return waits("the VMI is not running", 0)
	}
	s := m.w.changeVMIMStatus(m.VirtualMachineInstanceMigration, "phase Pending", func(m *kubevirtv1.VirtualMachineInstanceMigration) {
		m.Status.Phase = kubevirtv1.MigrationPending
		m.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{SourcePod: source.Name}
		m.Status.PhaseTransitionTimestamps = []kubevirtv1.VirtualMachineInstanceMigrationPhaseTransitionTimestamp{
			{Phase: kubevirtv1.MigrationPending, PhaseTransitionTimestamp: metav1.Now()},
		}
	})
	return m.at(StagePending, s)
}

// prepare makes the target pod, when not too many migrations go on, and the attachment pod of hotplugged volumes.
func (m *vmim) prepare() *step {
	if m.target == nil {
		wait := m.backoff()
		switch {
		case wait > 0:
			m.w.engine.warn(m.w.vmi, "MigrationBackoff", fmt.Sprintf("backoff migrating vmi %s/%s", m.Namespace, m.Spec.VMIName))
			return waits("evacuations before have failed", wait)
		case m.crowded():
			return waits("too many migrations go on", crowdPoll)
		case slices.ContainsFunc(m.w.launchers, func(p *corev1.Pod) bool { return p != m.w.current() && !down(p) }):
			// A VMI never has more than two.
			return waits("a launcher of the migration before has not ended", 0)
		case len(absent(m.w.vmi)) > 0:
			return waits("a NIC is being unplugged", 0)
		}
		nonroot := m.w.changeVMI("nonroot", func(vmi *kubevirtv1.VirtualMachineInstance) {
			metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, kubevirtv1.DeprecatedNonRootVMIAnnotation, "true")
		})
		if nonroot != nil {
			return nonroot
		}
		return m.at(StageTargetPod, m.w.create(m.w.targetPod(m.VirtualMachineInstanceMigration)))
	}
	if !m.knobs().has(HotplugAnnotation) {
		return m.to(kubevirtv1.MigrationScheduling)
	}
	a := m.w.attachment(m.VirtualMachineInstanceMigration)
	switch {
	case m.target.Spec.NodeName == "":
		return m.overdue()
	case a == nil:
		return m.w.create(m.w.attachmentPod(m.VirtualMachineInstanceMigration, m.target))
	case !containersReady(a), !containersReady(m.target):
		return m.overdue()
	}
	return m.to(kubevirtv1.MigrationScheduling)
}

// crowded: the limits of migrations from this node or in the cluster are reached.
func (m *vmim) crowded() bool {
	return m.w.outbound[""] >= maxCluster || m.w.outbound[m.w.vmi.Status.NodeName] >= maxOutbound
}

// overdue deletes a target pod that has been waited for too long.
func (m *vmim) overdue() *step {
	if m.target == nil || m.target.Status.Phase != corev1.PodPending {
		return nil
	}
	otherwise, why := pendingTimeout, "it has not started for too long"
	if m.target.Spec.NodeName == "" {
		otherwise, why = unschedulableTimeout, "it could not be scheduled for too long"
	}
	limit := m.knobs().duration(PendingTimeoutAnnotation, otherwise)
	if left := limit - m.w.now.Sub(m.target.CreationTimestamp.Time); left > 0 {
		return waits("the target pod is pending", left)
	}
	return m.w.remove(m.target, why)
}

// handOff tells the handlers of both nodes, in one patch of the VMI. The record of the last migration goes.
func (m *vmim) handOff() *step {
	source := m.w.current()
	if source == nil {
		return waits("the source pod is gone", 0)
	}
	return m.w.changeVMI("hand-off to "+m.target.Spec.NodeName, func(vmi *kubevirtv1.VirtualMachineInstance) {
		metav1.SetMetaDataLabel(&vmi.ObjectMeta, kubevirtv1.MigrationTargetNodeNameLabel, m.target.Spec.NodeName)
		overhead := resource.MustParse(memoryOverhead)
		vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{
			MigrationUID: m.UID, SourceNode: vmi.Status.NodeName, TargetNode: m.target.Spec.NodeName, SourcePod: source.Name, TargetPod: m.target.Name,
			TargetMemoryOverhead: &overhead, VMIMConfigurationOptions: m.configuration(),
		}
	})
}

// configuration is KubeVirt's default one, with the knobs' part.
func (m *vmim) configuration() *kubevirtv1.VMIMConfigurationOptions {
	bandwidth := resource.MustParse("0")
	if q, err := resource.ParseQuantity(m.knobs().get(BandwidthAnnotation)); err == nil {
		bandwidth = q
	}
	postCopy := m.postCopy()
	return &kubevirtv1.VMIMConfigurationOptions{
		AllowAutoConverge: ptr(false), AllowPostCopy: &postCopy, AllowWorkloadDisruption: ptr(postCopy), BandwidthPerMigration: &bandwidth,
		CompletionTimeoutPerGiB: ptr(int64(150)), MaxDowntimeMs: ptr(uint64(maxDowntime / time.Millisecond)), NodeDrainTaintKey: ptr("kubevirt.io/drain"),
		ParallelMigrationsPerCluster: ptr(uint32(maxCluster)), ParallelOutboundMigrationsPerNode: ptr(uint32(maxOutbound)),
		ProgressTimeout: ptr(int64(150)), UnsafeMigrationOverride: ptr(false), UtilityVolumesTimeout: ptr(int64(150)),
	}
}

func (m *vmim) postCopy() bool {
	return m.knobs().get(ModeAnnotation) == string(kubevirtv1.MigrationPostCopy)
}

// ptr returns a pointer to a value.
func ptr[T any](v T) *T { return &v }

func hasCondition(m *kubevirtv1.VirtualMachineInstanceMigration, t kubevirtv1.VirtualMachineInstanceMigrationConditionType) bool {
	return slices.ContainsFunc(m.Status.Conditions, func(c kubevirtv1.VirtualMachineInstanceMigrationCondition) bool { return c.Type == t })
}

package kubevirt

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// quick leaves out what KubeVirt waits for by itself.
var quick = map[string]string{DelayAnnotation: "EndTimestamp=0s"}

func with(base map[string]string, more ...string) map[string]string {
	out := map[string]string{}
	for k, v := range base {
		out[k] = v
	}
	for i := 0; i+1 < len(more); i += 2 {
		out[more[i]] = more[i+1]
	}
	return out
}

// TestStandIn runs the stand-in against an API server, with launchers that have no QEMU.
func TestStandIn(t *testing.T) {
	e := newEnv(t, server(t))
	for _, c := range []struct {
		name string
		test func(*testing.T, *env)
	}{
		{"there and back", thereAndBack},
		{"back to back", backToBack},
		{"cancelled before the hand-off", cancelledEarly},
		{"cancelled while it runs", cancelledLate},
		{"target deleted", targetDeleted},
		{"target fails while it is prepared", targetFails},
		{"target ends late", targetEndsLate},
		{"target ends after it ran", targetEndsAfterItRan},
		{"source crashes", sourceCrashes},
		{"source deleted", sourceDeleted},
		{"target unschedulable", targetUnschedulable},
		{"target stuck", targetStuck},
		{"hotplug", hotplug},
		{"held and released", heldAndReleased},
		{"not migratable", notMigratable},
		{"misspelt knob", misspelt},
		{"limits", limits},
		{"evicted", evicted},
		{"evicted without a strategy", evictedForGood},
		{"evacuation cancelled", evacuationCancelled},
		{"evacuations of a node", evacuations},
		{"paused", paused},
		{"forgotten", forgotten},
		{"virtual machine", virtualMachine},
		{"NIC plugged and unplugged", nicPlugged},
		{"restart of the stand-in", restart},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, e.in(t)) })
	}
}

func thereAndBack(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", nil)
	m := e.awaitRecord(t, "m1")
	if s := m.Status.MigrationState; s.SourceNode != "node1" || s.TargetNode != "node2" {
		t.Errorf("it went from %s to %s", s.SourceNode, s.TargetNode)
	}
	e.settled(t, "vm1", "node2")
	compareOrder(t, []byte(e.recording.String()), e.namespace)
	e.migrate(t, "vm1", "m2", quick)
	e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node1")
}

// awaitRecord waits until a migration has succeeded and the stand-in has let it go: nothing is written to it any more.
func (e *env) awaitRecord(t *testing.T, name string) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	m := &kubevirtv1.VirtualMachineInstanceMigration{}
	eventually(t, "VMIM "+name+" succeeded and its record complete", func() bool {
		return e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: name}, m) == nil &&
			m.Status.Phase == kubevirtv1.MigrationSucceeded && m.Status.MigrationState != nil && len(m.Finalizers) == 0
	})
	return m
}

// backToBack: A→B→C, the second one made while the first one is on its way.
func backToBack(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", with(quick, HoldAnnotation, string(StageSwitchover))) // or it may have ended before anybody has seen it run
	e.awaitPhase(t, "m1", kubevirtv1.MigrationRunning)
	m2 := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Name: "m2", Namespace: e.namespace, Annotations: quick},
		Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{
			VMIName: "vm1", AddedNodeSelector: map[string]string{corev1.LabelHostname: "node3"},
		},
	}
	if err := e.api.Create(t.Context(), m2); err != nil {
		t.Fatal(err)
	}
	e.release(t, "m1")
	e.awaitPhase(t, "m1", kubevirtv1.MigrationSucceeded)
	e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node3")
}

func (e *env) cancel(t *testing.T, name string) {
	t.Helper()
	m := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.namespace}}
	if err := e.api.Delete(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func (e *env) awaitGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, "VMIM "+name+" gone", func() bool {
		err := e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: name}, &kubevirtv1.VirtualMachineInstanceMigration{})
		return client.IgnoreNotFound(err) == nil && err != nil
	})
}

func cancelledEarly(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{HoldAnnotation: string(StageHandOff)})
	e.awaitPhase(t, "m1", kubevirtv1.MigrationScheduled)
	e.cancel(t, "m1")
	e.awaitGone(t, "m1")
	e.settled(t, "vm1", "node1")
	vmi := e.awaitVMI(t, "vm1", "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true })
	if vmi.Status.MigrationState != nil {
		t.Errorf("the VMI tells of a migration that was never handed off: %+v", vmi.Status.MigrationState)
	}
}

func cancelledLate(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{HoldAnnotation: string(StageSwitchover)})
	e.awaitPhase(t, "m1", kubevirtv1.MigrationRunning)
	e.cancel(t, "m1")
	e.awaitGone(t, "m1")
	e.settled(t, "vm1", "node1")
	e.expectFailed(t, "vm1", "Live migration has been aborted")
	e.migrate(t, "vm1", "m2", quick)
	e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
}

// expectFailed: the VMI's record says that its last migration failed, and why.
func (e *env) expectFailed(t *testing.T, name, why string) {
	t.Helper()
	vmi := e.awaitVMI(t, name, "with a failed migration", func(v *kubevirtv1.VirtualMachineInstance) bool {
		return v.Status.MigrationState != nil && v.Status.MigrationState.Failed
	})
	s := vmi.Status.MigrationState
	if !s.Completed || s.EndTimestamp == nil || why != "" && s.FailureReason != why {
		t.Errorf("the record of a failed migration is %+v, want completed, an end and the reason %q", s, why)
	}
	if s.AbortRequested != (s.AbortStatus == kubevirtv1.MigrationAbortSucceeded) {
		t.Errorf("abort requested: %v, status %q", s.AbortRequested, s.AbortStatus)
	}
}

func targetDeleted(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{HoldAnnotation: string(StageTargetAddress)})
	m := e.awaitPhase(t, "m1", kubevirtv1.MigrationPreparingTarget)
	vmi := e.awaitVMI(t, "vm1", "handed off", func(v *kubevirtv1.VirtualMachineInstance) bool { return v.Status.MigrationState != nil })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: vmi.Status.MigrationState.TargetPod, Namespace: m.Namespace}}
	if err := e.api.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
	e.settled(t, "vm1", "node1")
	e.expectFailed(t, "vm1", "Target pod is down")
}

func (e *env) failing(t *testing.T, fault Fault, phase kubevirtv1.VirtualMachineInstancePhase) {
	t.Helper()
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", with(quick, FailAnnotation, string(fault)))
	e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
	e.awaitVMI(t, "vm1", string(phase), func(v *kubevirtv1.VirtualMachineInstance) bool { return v.Status.Phase == phase })
	if phase != kubevirtv1.Running {
		return
	}
	e.settled(t, "vm1", "node1")
	e.expectFailed(t, "vm1", "")
	// Nothing is left that would keep the next one from succeeding.
	e.migrate(t, "vm1", "m2", quick)
	e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node2")
}

func targetFails(t *testing.T, e *env) { e.failing(t, FaultTargetPod, kubevirtv1.Running) }

func targetEndsLate(t *testing.T, e *env) {
	e.failing(t, FaultTargetLate, kubevirtv1.Running)
	seen := false
	for _, l := range order(t, []byte(e.recording.String()), e.namespace) {
		seen = seen || l == "vmi1 .status.migrationState.targetNodeDomainDetected"
		if !seen {
			continue
		}
		break
	}
	if !seen {
		t.Error("the target's domain was never detected")
	}
}

func targetEndsAfterItRan(t *testing.T, e *env) { e.failing(t, FaultTargetResumed, kubevirtv1.Running) }

func sourceCrashes(t *testing.T, e *env) {
	defer func(usual time.Duration) { e.launchers.copying = usual }(e.launchers.copying)
	e.launchers.copying = 10 * time.Second // it crashes meanwhile, however busy the machine is
	e.failing(t, FaultSourceCrash, kubevirtv1.Failed)
	eventually(t, "without launchers", func() bool {
		return len(e.live(t, e.awaitVMI(t, "vm1", "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true }))) == 0
	})
}

func sourceDeleted(t *testing.T, e *env) {
	vmi := e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{HoldAnnotation: string(StageStart)})
	e.awaitPhase(t, "m1", kubevirtv1.MigrationTargetReady)
	for _, p := range e.live(t, vmi) {
		if p.Labels[kubevirtv1.MigrationJobLabel] == "" {
			if err := e.api.Delete(t.Context(), &p); err != nil {
				t.Fatal(err)
			}
		}
	}
	e.awaitVMI(t, "vm1", "failed", func(v *kubevirtv1.VirtualMachineInstance) bool { return v.Status.Phase == kubevirtv1.Failed })
	e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
}

func targetUnschedulable(t *testing.T, e *env) { e.pending(t, FaultUnschedulable) }

func targetStuck(t *testing.T, e *env) { e.pending(t, FaultTargetStuck) }

// pending: the target pod is deleted after a while, and the VMI learns nothing.
func (e *env) pending(t *testing.T, fault Fault) {
	t.Helper()
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{FailAnnotation: string(fault), PendingTimeoutAnnotation: "1s"})
	m := e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
	// It is there for a second, in which nobody may have looked.
	if !slices.ContainsFunc(m.Status.PhaseTransitionTimestamps, func(p kubevirtv1.VirtualMachineInstanceMigrationPhaseTransitionTimestamp) bool {
		return p.Phase == kubevirtv1.MigrationScheduling
	}) {
		t.Errorf("it was never %s: %v", kubevirtv1.MigrationScheduling, m.Status.PhaseTransitionTimestamps)
	}
	e.settled(t, "vm1", "node1")
}

// hotplug: the migration is Pending until both pods run; kube-ovn's deadlock was to wait for Scheduling before that.
func hotplug(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	m := e.migrate(t, "vm1", "m1", with(quick, HotplugAnnotation, "true", HoldAnnotation, string(StageScheduling)))
	var pods corev1.PodList
	eventually(t, "target and attachment run", func() bool {
		err := e.api.List(t.Context(), &pods, client.InNamespace(e.namespace), client.MatchingLabels{kubevirtv1.MigrationJobLabel: string(m.UID)})
		return err == nil && len(pods.Items) == 2 && containersReady(&pods.Items[0]) && containersReady(&pods.Items[1])
	})
	if got := e.awaitPhase(t, "m1", kubevirtv1.MigrationPending); got.Status.Phase != kubevirtv1.MigrationPending {
		t.Errorf("phase %s", got.Status.Phase)
	}
	e.release(t, "m1")
	e.awaitPhase(t, "m1", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node2")
}

func (e *env) release(t *testing.T, name string) {
	t.Helper()
	m := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.namespace}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+HoldAnnotation+`":null}}}`))
	if err := e.api.Patch(t.Context(), m, patch); err != nil {
		t.Fatal(err)
	}
}

// heldAndReleased: at each of these stages the migration waits, and it goes on afterwards.
func heldAndReleased(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	for i, s := range []Stage{StageTargetPod, StageIncoming, StageSwitchover, StageResume, StageCompleted, StageFinalize} {
		name := "m" + string(rune('a'+i))
		e.migrate(t, "vm1", name, with(quick, HoldAnnotation, string(s)))
		phase := map[Stage]kubevirtv1.VirtualMachineInstanceMigrationPhase{
			StageTargetPod: kubevirtv1.MigrationPending, StageIncoming: kubevirtv1.MigrationPreparingTarget, StageFinalize: kubevirtv1.MigrationSucceeded,
		}[s]
		if phase == "" {
			phase = kubevirtv1.MigrationRunning
		}
		e.awaitPhase(t, name, phase)
		time.Sleep(100 * time.Millisecond) // nothing tells that nothing happens
		m := e.awaitPhase(t, name, phase)
		if s == StageFinalize && len(m.Finalizers) == 0 {
			t.Error("the finalizer went while it was held")
		}
		e.release(t, name)
		e.awaitPhase(t, name, kubevirtv1.MigrationSucceeded)
		e.settled(t, "vm1", []string{"node2", "node1"}[i%2])
	}
}

func notMigratable(t *testing.T, e *env) {
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "vm1", Namespace: e.namespace}}
	if err := e.api.Create(t.Context(), vmi); err != nil {
		t.Fatal(err)
	}
	e.awaitVMI(t, "vm1", "running", func(v *kubevirtv1.VirtualMachineInstance) bool { return v.Status.Phase == kubevirtv1.Running })
	e.migrate(t, "vm1", "m1", nil)
	e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
}

func misspelt(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	e.migrate(t, "vm1", "m1", map[string]string{FailAnnotation: "target-lately"})
	e.awaitPhase(t, "m1", kubevirtv1.MigrationFailed)
	if err := (knobs{{DelayAnnotation: "Completed"}}).check(); err == nil {
		t.Error("a delay without a duration was taken")
	}
}

// paused: a VM that its user has paused moves, and stays paused until it is unpaused.
func paused(t *testing.T, e *env) {
	vmi := e.vmi(t, "vm1", nil)
	pause := func(value string) {
		t.Helper()
		change := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, PauseAnnotation, value)
		if err := e.api.Patch(t.Context(), vmi, client.RawPatch(types.MergePatchType, []byte(change))); err != nil {
			t.Fatal(err)
		}
	}
	isPaused := func(v *kubevirtv1.VirtualMachineInstance) bool {
		return conditionTrue(v, kubevirtv1.VirtualMachineInstancePaused)
	}
	pause(`""`)
	e.awaitVMI(t, "vm1", "paused", isPaused)
	e.migrate(t, "vm1", "m1", quick)
	e.awaitPhase(t, "m1", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node2")
	if v := e.awaitVMI(t, "vm1", "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true }); !isPaused(v) {
		t.Error("it is not paused any more")
	}
	pause("null")
	e.awaitVMI(t, "vm1", "not paused", func(v *kubevirtv1.VirtualMachineInstance) bool { return !isPaused(v) })
	e.migrate(t, "vm1", "m2", quick)
	e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node1")
}

// limits: two migrations leave a node at a time; the third waits for them.
func limits(t *testing.T, e *env) {
	for _, vm := range []string{"a", "b", "c"} {
		e.vmi(t, vm, nil)
	}
	hold := with(quick, HoldAnnotation, string(StageStart))
	e.migrate(t, "a", "ma", hold)
	e.migrate(t, "b", "mb", hold)
	e.awaitPhase(t, "ma", kubevirtv1.MigrationTargetReady)
	e.awaitPhase(t, "mb", kubevirtv1.MigrationTargetReady)
	e.migrate(t, "c", "mc", quick)
	e.awaitPhase(t, "mc", kubevirtv1.MigrationPending)
	time.Sleep(3 * crowdPoll / 2)
	e.awaitPhase(t, "mc", kubevirtv1.MigrationPending)
	e.release(t, "ma")
	e.awaitPhase(t, "mc", kubevirtv1.MigrationSucceeded)
	e.release(t, "mb")
	e.awaitPhase(t, "mb", kubevirtv1.MigrationSucceeded)
}

// forgotten: of seven migrations five are kept, and pods of the others go with them.
func forgotten(t *testing.T, e *env) {
	vmi := e.vmi(t, "vm1", nil)
	for i := range 7 {
		name := "m" + string(rune('a'+i))
		e.migrate(t, "vm1", name, quick)
		e.awaitPhase(t, name, kubevirtv1.MigrationSucceeded)
		e.settled(t, "vm1", []string{"node2", "node1"}[i%2])
		// Creation times have whole seconds.
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	}
	e.awaitGone(t, "ma")
	e.awaitGone(t, "mb")
	var vmims kubevirtv1.VirtualMachineInstanceMigrationList
	var pods corev1.PodList
	eventually(t, "five migrations and six pods", func() bool {
		in := client.InNamespace(e.namespace)
		created := client.MatchingLabels{kubevirtv1.CreatedByLabel: string(vmi.UID)}
		return e.api.List(t.Context(), &vmims, in) == nil && len(vmims.Items) == keptMigrations && e.api.List(t.Context(), &pods, in, created) == nil && len(pods.Items) == 6
	})
}

// restart: nothing is remembered by the stand-in that the API server and the launchers do not tell.
func restart(t *testing.T, e *env) {
	e.vmi(t, "vm1", nil)
	for i, s := range []Stage{StageTargetAddress, StageReadyAnnotation} {
		name := "m" + string(rune('a'+i))
		e.migrate(t, "vm1", name, with(quick, HoldAnnotation, string(s)))
		phase := map[Stage]kubevirtv1.VirtualMachineInstanceMigrationPhase{
			StageTargetAddress: kubevirtv1.MigrationPreparingTarget,
		}[s]
		if phase == "" {
			phase = kubevirtv1.MigrationRunning
			e.awaitVMI(t, "vm1", "ready", func(v *kubevirtv1.VirtualMachineInstance) bool {
				return v.Status.MigrationState != nil && v.Status.MigrationState.TargetNodeDomainReadyTimestamp != nil
			})
		}
		e.awaitPhase(t, name, phase)
		e.stop()
		e.stop = e.standIn(t)
		e.release(t, name)
		e.awaitPhase(t, name, kubevirtv1.MigrationSucceeded)
		e.settled(t, "vm1", []string{"node2", "node1"}[i%2])
	}
}

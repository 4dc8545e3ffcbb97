package kubevirt

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func (e *env) evacuable(t *testing.T, name string, strategy kubevirtv1.EvictionStrategy, annotations map[string]string) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.namespace, Annotations: annotations}}
	vmi.Spec.EvictionStrategy = &strategy
	return e.create(t, vmi)
}

// evict asks for the eviction of a pod, as kubectl drain does.
func (e *env) evict(t *testing.T, pod string, opts ...client.SubResourceCreateOption) error {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: e.namespace}}
	var err error
	eventually(t, "eviction of "+pod+" answered", func() bool {
		err = e.api.SubResource("eviction").Create(t.Context(), p, &policyv1.Eviction{ObjectMeta: p.ObjectMeta}, opts...)
		return !apierrors.IsInternalError(err) // the webhook of an earlier stand-in is asked for some milliseconds still
	})
	return err
}

func (e *env) expectDenied(t *testing.T, err error, says string) {
	t.Helper()
	if !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), says) {
		t.Fatalf("the eviction ended with %v: want 429 and %q", err, says)
	}
}

// evacuation awaits the VM's only migration that has not ended, which is an evacuation of node1.
func (e *env) evacuation(t *testing.T, vmi string) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	var found *kubevirtv1.VirtualMachineInstanceMigration
	eventually(t, "an evacuation of "+vmi, func() bool {
		var list kubevirtv1.VirtualMachineInstanceMigrationList
		if err := e.api.List(t.Context(), &list, client.InNamespace(e.namespace)); err != nil {
			return false
		}
		n := 0
		for i := range list.Items {
			if m := &list.Items[i]; m.Spec.VMIName == vmi && !vmimFinal(m) && m.DeletionTimestamp == nil {
				found, n = m, n+1
			}
		}
		return n == 1
	})
	if a := found.Annotations[kubevirtv1.EvacuationMigrationAnnotation]; a != "node1" || !strings.HasPrefix(found.Name, "kubevirt-evacuation-") {
		t.Errorf("evacuation %s says it is of %q: want kubevirt-evacuation-… and node1", found.Name, a)
	}
	return found
}

// evicted: the eviction is denied, the VM moves in its place, and its old pod can be evicted then.
func evicted(t *testing.T, e *env) {
	vmi := e.evacuable(t, "vm1", kubevirtv1.EvictionStrategyLiveMigrate, with(quick, HoldAnnotation, string(StageStart)))
	pod := e.live(t, vmi)[0].Name
	e.expectDenied(t, e.evict(t, pod, client.DryRunAll), `Eviction triggered evacuation of VMI "evicted/vm1"`)
	e.expectDenied(t, e.evict(t, pod), evictionWebhook)
	m := e.evacuation(t, "vm1")
	e.awaitPhase(t, m.Name, kubevirtv1.MigrationTargetReady)
	e.expectDenied(t, e.evict(t, pod), "Evacuation in progress: Eviction triggered evacuation")
	e.releaseVM(t, vmi)
	e.awaitPhase(t, m.Name, kubevirtv1.MigrationSucceeded)
	e.settled(t, "vm1", "node2")
	moved := e.awaitVMI(t, "vm1", "without a mark", func(v *kubevirtv1.VirtualMachineInstance) bool { return v.Status.EvacuationNodeName == "" })
	if err := e.evict(t, pod); err != nil {
		t.Errorf("the pod that the VM has left cannot be evicted: %v", err)
	}
	if n := len(e.live(t, moved)); n != 1 {
		t.Errorf("%d launchers are left: want the VM's", n)
	}
}

func (e *env) releaseVM(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	if err := e.api.Patch(t.Context(), vmi, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+HoldAnnotation+`":null}}}`))); err != nil {
		t.Fatal(err)
	}
}

// evictedForGood: nobody has said what is to become of the VM, so its pod is evicted like any other.
func evictedForGood(t *testing.T, e *env) {
	vmi := e.vmi(t, "vm1", nil)
	if err := e.evict(t, e.live(t, vmi)[0].Name); err != nil {
		t.Fatal(err)
	}
	e.awaitVMI(t, "vm1", "ended", vmiFinal)
}

// evacuationCancelled: a migration that is cancelled has a successor until the mark is taken away.
func evacuationCancelled(t *testing.T, e *env) {
	vmi := e.evacuable(t, "vm1", kubevirtv1.EvictionStrategyLiveMigrateIfPossible, map[string]string{HoldAnnotation: string(StageStart)})
	e.expectDenied(t, e.evict(t, e.live(t, vmi)[0].Name), "Eviction triggered")
	first := e.evacuation(t, "vm1")
	e.cancel(t, first.Name)
	e.awaitGone(t, first.Name)
	second := e.evacuation(t, "vm1")
	e.awaitPhase(t, second.Name, kubevirtv1.MigrationTargetReady)
	if err := e.api.Patch(t.Context(), vmi, client.RawPatch(types.JSONPatchType, []byte(`[{"op":"remove","path":"/status/evacuationNodeName"}]`))); err != nil {
		t.Fatal(err)
	}
	e.cancel(t, second.Name)
	e.awaitGone(t, second.Name)
	e.settled(t, "vm1", "node1")
	var list kubevirtv1.VirtualMachineInstanceMigrationList
	if err := e.api.List(t.Context(), &list, client.InNamespace(e.namespace)); err != nil || len(list.Items) > 0 {
		t.Errorf("%d migrations are left (%v): want none", len(list.Items), err)
	}
}

// evacuations: no more of a node's VMs are on their way at a time than may be, and all leave in the end.
func evacuations(t *testing.T, e *env) {
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		vmi := e.evacuable(t, name, kubevirtv1.EvictionStrategyLiveMigrate, quick)
		e.expectDenied(t, e.evict(t, e.live(t, vmi)[0].Name, client.DryRunAll), "Eviction triggered")
	}
	for _, name := range names {
		vmi := e.awaitVMI(t, name, "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true })
		if vmi.Status.EvacuationNodeName != "" {
			t.Errorf("a dry run has marked VMI %s", name)
		}
		e.expectDenied(t, e.evict(t, e.live(t, vmi)[0].Name), "Eviction triggered")
	}
	eventually(t, "all have left node1", func() bool {
		var list kubevirtv1.VirtualMachineInstanceMigrationList
		if err := e.api.List(t.Context(), &list, client.InNamespace(e.namespace)); err != nil {
			t.Fatal(err)
		}
		on := 0
		for i := range list.Items {
			if m := &list.Items[i]; m.Status.Phase != "" && m.Status.Phase != kubevirtv1.MigrationPending && !vmimFinal(m) {
				on++
			}
		}
		if on > maxOutbound {
			t.Fatalf("%d migrations leave node1 at a time: want %d at most", on, maxOutbound)
		}
		left := 0
		for _, name := range names {
			v := e.awaitVMI(t, name, "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true })
			if v.Status.NodeName != "node1" && v.Status.EvacuationNodeName == "" {
				left++
			}
		}
		return left == len(names)
	})
}

func TestJudge(t *testing.T) {
	const live, possible, external, none = kubevirtv1.EvictionStrategyLiveMigrate, kubevirtv1.EvictionStrategyLiveMigrateIfPossible, kubevirtv1.EvictionStrategyExternal, kubevirtv1.EvictionStrategyNone
	for name, c := range map[string]struct {
		strategy   *kubevirtv1.EvictionStrategy
		stuck      bool
		node, mark string
		want       verdict
	}{
		"no strategy":                {node: "node1"},
		"none":                       {strategy: ptr(none), node: "node1"},
		"moves":                      {strategy: ptr(live), node: "node1", want: verdict{`Eviction triggered evacuation of VMI "shop/web"`, true}},
		"cannot move":                {strategy: ptr(live), stuck: true, node: "node1", want: verdict{why: "VMI web is configured with an eviction strategy but is not live-migratable"}},
		"moves if possible":          {strategy: ptr(possible), node: "node1", want: verdict{`Eviction triggered evacuation of VMI "shop/web"`, true}},
		"not possible":               {strategy: ptr(possible), stuck: true, node: "node1"},
		"somebody else moves it":     {strategy: ptr(external), stuck: true, node: "node1", want: verdict{`Eviction triggered evacuation of VMI "shop/web"`, true}},
		"asked again":                {strategy: ptr(live), node: "node1", mark: "node1", want: verdict{why: `Evacuation in progress: Eviction triggered evacuation of VMI "shop/web"`}},
		"the target of a migration":  {strategy: ptr(live), node: "node2", want: verdict{why: "Eviction request for target Pod"}},
		"a strategy nobody knows of": {strategy: ptr(kubevirtv1.EvictionStrategy("Hide")), node: "node1"},
	} {
		t.Run(name, func(t *testing.T) {
			vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
			vmi.Spec.EvictionStrategy = c.strategy
			vmi.Status.NodeName, vmi.Status.EvacuationNodeName = "node1", c.mark
			if !c.stuck {
				vmi.Status.Conditions = []kubevirtv1.VirtualMachineInstanceCondition{{Type: kubevirtv1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionTrue}}
			}
			if got := judge(&corev1.Pod{Spec: corev1.PodSpec{NodeName: c.node}}, vmi); got != c.want {
				t.Errorf("judge: %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	const failed, succeeded = kubevirtv1.MigrationFailed, kubevirtv1.MigrationSucceeded
	evacuation := func(phase kubevirtv1.VirtualMachineInstanceMigrationPhase, ago time.Duration) *kubevirtv1.VirtualMachineInstanceMigration {
		m := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{kubevirtv1.EvacuationMigrationAnnotation: "node1"}}}
		m.Status.Phase = phase
		m.Status.PhaseTransitionTimestamps = []kubevirtv1.VirtualMachineInstanceMigrationPhaseTransitionTimestamp{
			{Phase: phase, PhaseTransitionTimestamp: metav1.NewTime(now.Add(-ago))},
		}
		return m
	}
	asked := evacuation(failed, time.Second)
	asked.Annotations = nil
	cancelled := evacuation(failed, time.Second)
	cancelled.DeletionTimestamp = &metav1.Time{Time: now}
	for name, c := range map[string]struct {
		before []*kubevirtv1.VirtualMachineInstanceMigration
		want   time.Duration
	}{
		"the first":             {nil, 0},
		"after a failure":       {[]*kubevirtv1.VirtualMachineInstanceMigration{evacuation(failed, 5*time.Second)}, 15 * time.Second},
		"after two":             {[]*kubevirtv1.VirtualMachineInstanceMigration{evacuation(failed, 30*time.Second), evacuation(failed, 5*time.Second)}, 35 * time.Second},
		"long after":            {[]*kubevirtv1.VirtualMachineInstanceMigration{evacuation(failed, time.Minute)}, 0},
		"after a success":       {[]*kubevirtv1.VirtualMachineInstanceMigration{evacuation(failed, 2*time.Second), evacuation(succeeded, time.Second)}, 0},
		"after one asked for":   {[]*kubevirtv1.VirtualMachineInstanceMigration{asked}, 0},
		"after a cancelled one": {[]*kubevirtv1.VirtualMachineInstanceMigration{cancelled}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			next := evacuation(kubevirtv1.MigrationPending, 0)
			next.UID = "next"
			m := &vmim{VirtualMachineInstanceMigration: next, w: &world{now: now, vmims: append(c.before, next)}}
			if got := m.backoff(); got != c.want {
				t.Errorf("backoff %s, want %s", got, c.want)
			}
		})
	}
	own := &vmim{VirtualMachineInstanceMigration: asked, w: &world{now: now, vmims: []*kubevirtv1.VirtualMachineInstanceMigration{evacuation(failed, 0), asked}}}
	if got := own.backoff(); got != 0 {
		t.Errorf("a migration that somebody asked for waits %s", got)
	}
}

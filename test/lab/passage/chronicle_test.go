package passage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/timeline"
)

// What was there before the migration is no stage of it, what is told again neither.
func TestChronicle(t *testing.T) {
	c := &chronicle{}
	source := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "launcher-a", UID: "a"}}
	source.Spec.NodeName, source.Status.Phase = "node1", corev1.PodRunning
	earlier := metav1.NewTime(start)
	vmi := &kubevirtv1.VirtualMachineInstance{}
	vmi.Status.NodeName = "node1"
	vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{MigrationUID: "0", TargetNodeDomainReadyTimestamp: &earlier}
	c.take(source, at(1))
	c.take(vmi, at(1))
	c.begin()
	c.take(source, at(2))
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "launcher-b", UID: "b"}}
	c.take(target, at(3))
	target.Spec.NodeName = "node2"
	c.take(target, at(4))
	c.take(target, at(5))
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Name: "m", UID: "1"}}
	for i, phase := range []kubevirtv1.VirtualMachineInstanceMigrationPhase{kubevirtv1.MigrationPending, kubevirtv1.MigrationScheduling, kubevirtv1.MigrationRunning} {
		vmim.Status.Phase = phase
		c.take(vmim, at(6+i))
	}
	vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{MigrationUID: "1", TargetPod: "launcher-b", TargetNodeDomainReadyTimestamp: &earlier}
	c.take(vmi, at(9))
	vmi.Status.NodeName = "node2"
	c.take(vmi, at(10))
	vmim.Status.Phase = kubevirtv1.MigrationSucceeded
	c.take(vmim, at(11))
	stage := func(ms int, name, detail string) timeline.Stage {
		return timeline.Stage{At: at(ms), Actor: timeline.KubeVirt, Name: name, Detail: detail}
	}
	want := []timeline.Stage{
		stage(3, "target pod created", "launcher-b"), stage(4, "target pod scheduled", "node2"), stage(8, "migration runs", "m"),
		stage(9, "VM ready on the target", "launcher-b"), stage(10, "VMI says node2", ""), stage(11, "migration succeeded", "m"),
	}
	if diff := cmp.Diff(want, c.stages[1:]); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if first := c.stages[0]; first.Name != "migration created" {
		t.Errorf("first stage: %+v", first)
	}
}

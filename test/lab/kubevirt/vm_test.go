package kubevirt

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// virtualMachine: started, restarted after a crash, stopped, started again, deleted.
func virtualMachine(t *testing.T, e *env) {
	always := kubevirtv1.RunStrategyAlways
	vm := &kubevirtv1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Name: "my.vm", Namespace: e.namespace},
		Spec: kubevirtv1.VirtualMachineSpec{RunStrategy: &always, Template: &kubevirtv1.VirtualMachineInstanceTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		}},
	}
	if err := e.api.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	e.awaitVM(t, kubevirtv1.VirtualMachineStatusRunning)
	vmi := e.awaitVMI(t, "my.vm", "there", func(*kubevirtv1.VirtualMachineInstance) bool { return true })
	pod := e.live(t, vmi)[0]
	if got := pod.Labels; got[kubevirtv1.DeprecatedVirtualMachineNameLabel] != "my" || got["app"] != "web" || pod.Annotations[kubevirtv1.DomainAnnotation] != "my.vm" {
		t.Errorf("the launcher has labels %v and annotations %v", got, pod.Annotations)
	}
	if err := e.launchers.of(pod.UID).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := e.awaitVMI(t, "my.vm", "another one, running", func(v *kubevirtv1.VirtualMachineInstance) bool {
		return v.UID != vmi.UID && v.Status.Phase == kubevirtv1.Running
	})
	if again.Spec.Domain.Firmware.UUID != vmi.Spec.Domain.Firmware.UUID {
		t.Errorf("the firmware's UUID changed from %s to %s", vmi.Spec.Domain.Firmware.UUID, again.Spec.Domain.Firmware.UUID)
	}
	e.patchVM(t, `{"spec":{"runStrategy":"Halted"}}`)
	e.awaitVM(t, kubevirtv1.VirtualMachineStatusStopped)
	e.patchVM(t, `{"spec":{"runStrategy":"Always"}}`)
	e.awaitVM(t, kubevirtv1.VirtualMachineStatusRunning)
	if err := e.api.Delete(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the VirtualMachine gone", func() bool {
		err := e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: "my.vm"}, vm)
		return err != nil && client.IgnoreNotFound(err) == nil
	})
	var pods corev1.PodList
	if err := e.api.List(t.Context(), &pods, client.InNamespace(e.namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		if !down(&pods.Items[i]) && pods.Items[i].DeletionTimestamp == nil {
			t.Errorf("pod %s lives on", pods.Items[i].Name)
		}
	}
}

func (e *env) awaitVM(t *testing.T, status kubevirtv1.VirtualMachinePrintableStatus) {
	t.Helper()
	eventually(t, "VM "+string(status), func() bool {
		vm := &kubevirtv1.VirtualMachine{}
		err := e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: "my.vm"}, vm)
		return err == nil && vm.Status.PrintableStatus == status
	})
}

func (e *env) patchVM(t *testing.T, patch string) {
	t.Helper()
	vm := &kubevirtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Name: "my.vm", Namespace: e.namespace}}
	if err := e.api.Patch(t.Context(), vm, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

package kubevirt

import (
	"context"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/nad"
)

// changeTemplate changes the spec in the template of VirtualMachine my.vm.
func (e *env) changeTemplate(t *testing.T, change func(*kubevirtv1.VirtualMachineInstanceSpec)) {
	t.Helper()
	eventually(t, "the template of my.vm changed", func() bool {
		vm := &kubevirtv1.VirtualMachine{}
		if err := e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: "my.vm"}, vm); err != nil {
			return false
		}
		change(&vm.Spec.Template.Spec)
		return e.api.Update(t.Context(), vm) == nil
	})
}

// nicPlugged: a NIC that is new in the template comes by migration; one that is absent there goes at once, and is then forgotten.
func nicPlugged(t *testing.T, e *env) {
	always := kubevirtv1.RunStrategyAlways
	blue := *kubevirtv1.DefaultBridgeNetworkInterface()
	blue.Name = "blue"
	vm := &kubevirtv1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Name: "my.vm", Namespace: e.namespace},
		Spec: kubevirtv1.VirtualMachineSpec{RunStrategy: &always, Template: &kubevirtv1.VirtualMachineInstanceTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation: "true"}},
		}},
	}
	vm.Spec.Template.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
	vm.Spec.Template.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}
	if err := e.api.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.api.Delete(context.WithoutCancel(t.Context()), vm); err != nil {
			t.Error(err)
		}
	}()
	e.awaitVM(t, kubevirtv1.VirtualMachineStatusRunning)

	e.changeTemplate(t, func(s *kubevirtv1.VirtualMachineInstanceSpec) {
		s.Networks = append(s.Networks, kubevirtv1.Network{Name: "blue", NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "blue"}}})
		s.Domain.Devices.Interfaces = append(s.Domain.Devices.Interfaces, blue)
	})
	has := func(v *kubevirtv1.VirtualMachineInstance) bool {
		return slices.ContainsFunc(v.Status.Interfaces, func(i kubevirtv1.VirtualMachineInstanceNetworkInterface) bool { return i.Name == "blue" })
	}
	required := func(v *kubevirtv1.VirtualMachineInstance) bool {
		return conditionTrue(v, kubevirtv1.VirtualMachineInstanceMigrationRequired)
	}
	e.awaitVMI(t, "my.vm", "in need of a migration", func(v *kubevirtv1.VirtualMachineInstance) bool {
		return len(v.Spec.Networks) == 2 && required(v) && !has(v)
	})
	e.migrate(t, "my.vm", "m1", quick)
	e.awaitRecord(t, "m1")
	vmi := e.awaitVMI(t, "my.vm", "with two NICs", func(v *kubevirtv1.VirtualMachineInstance) bool { return has(v) && !required(v) })
	if pod := e.alone(t, vmi); pod.Annotations[nad.Annotation] == "" {
		t.Errorf("the launcher to which it moved has annotations %v, want %s", pod.Annotations, nad.Annotation)
	}

	e.changeTemplate(t, func(s *kubevirtv1.VirtualMachineInstanceSpec) {
		s.Domain.Devices.Interfaces[1].State = kubevirtv1.InterfaceStateAbsent
	})
	e.awaitVMI(t, "my.vm", "with one NIC", func(v *kubevirtv1.VirtualMachineInstance) bool { return !has(v) && len(v.Spec.Networks) == 1 })
	eventually(t, "the template without the NIC", func() bool {
		err := e.api.Get(t.Context(), client.ObjectKeyFromObject(vm), vm)
		return err == nil && len(vm.Spec.Template.Spec.Networks) == 1 && len(vm.Spec.Template.Spec.Domain.Devices.Interfaces) == 1
	})
	e.migrate(t, "my.vm", "m2", quick)
	e.awaitRecord(t, "m2")
	if pod := e.alone(t, vmi); pod.Annotations[nad.Annotation] != "" {
		t.Errorf("the launcher to which it moved without the NIC has annotations %v", pod.Annotations)
	}
}

// alone is the VMI's launcher, when it is the only one.
func (e *env) alone(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) (pod corev1.Pod) {
	t.Helper()
	eventually(t, "one launcher", func() bool {
		live := e.live(t, vmi)
		if len(live) > 0 {
			pod = live[0]
		}
		return len(live) == 1
	})
	return pod
}

package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// installKubeVirt makes KubeVirt's definitions, and nothing that acts on them: the tests do.
func (e *env) installKubeVirt(t *testing.T) {
	t.Helper()
	var crds []*apiextensionsv1.CustomResourceDefinition
	for text := range strings.SplitSeq(kubevirt.Manifests()[0], "\n---\n") {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal([]byte(text), crd); err != nil {
			t.Fatal(err)
		}
		if crd.Name != "" {
			crds = append(crds, crd)
		}
	}
	if _, err := envtest.InstallCRDs(e.rest, envtest.CRDInstallOptions{CRDs: crds, MaxTime: patience}); err != nil {
		t.Fatalf("install KubeVirt's definitions: %v", err)
	}
}

// vmi creates a running instance of a VM.
func (e *env) vmi(t *testing.T, vm types.NamespacedName, change ...func(*kubevirtv1.VirtualMachineInstance)) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Name},
		Spec:       kubevirtv1.VirtualMachineInstanceSpec{Networks: []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}},
		Status:     kubevirtv1.VirtualMachineInstanceStatus{Phase: kubevirtv1.Running},
	}
	vmi.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}
	for _, c := range change {
		c(vmi)
	}
	if err := e.api.Create(t.Context(), vmi); err != nil {
		t.Fatal(err)
	}
	return vmi
}

// launcher creates a launcher pod; a migration's target when vmim is not nil. It has no node when node is empty.
func (e *env) launcher(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance, name, node string, vmim *kubevirtv1.VirtualMachineInstanceMigration) *corev1.Pod {
	t.Helper()
	pod := newPod(key(vmi.Namespace, name), node)
	controller := true
	pod.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: kubevirtv1.GroupVersion.String(), Kind: "VirtualMachineInstance", Name: vmi.Name, UID: vmi.UID, Controller: &controller,
	}}
	pod.Labels = map[string]string{kubevirtv1.AppLabel: "virt-launcher"}
	pod.Spec.Containers[0].Name = "compute"
	if vmim != nil {
		pod.Labels[kubevirtv1.MigrationJobLabel] = string(vmim.UID)
	}
	if err := e.api.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func (e *env) migration(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: vmi.Namespace, GenerateName: "kubevirt-migrate-vm-"},
		Spec:       kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi.Name},
	}
	if err := e.api.Create(t.Context(), vmim); err != nil {
		t.Fatal(err)
	}
	return vmim
}

func (e *env) migrationPhase(t *testing.T, vmim *kubevirtv1.VirtualMachineInstanceMigration, phase kubevirtv1.VirtualMachineInstanceMigrationPhase) {
	t.Helper()
	before := vmim.DeepCopy()
	vmim.Status.Phase = phase
	if err := e.api.Status().Patch(t.Context(), vmim, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

func (e *env) podPhase(t *testing.T, pod *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	before := pod.DeepCopy()
	pod.Status.Phase = phase
	if err := e.api.Status().Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// row is the VM's, or an error while there is none.
func (e *env) row(t *testing.T, vm types.NamespacedName) (*nbdb.LogicalSwitchPort, error) {
	t.Helper()
	lsp, err := e.nb.Port(t.Context(), ident.VMPort(vm.Namespace, vm.Name, ident.DefaultNetwork))
	if err == nil && lsp == nil {
		err = fmt.Errorf("VM %s has no row", vm)
	}
	return lsp, err
}

// asks waits until the VM's row asks for chassis, with or without an activation strategy, and returns it.
func (e *env) asks(t *testing.T, vm types.NamespacedName, chassis, strategy string) *nbdb.LogicalSwitchPort {
	t.Helper()
	var lsp *nbdb.LogicalSwitchPort
	eventually(t, func() (err error) {
		if lsp, err = e.row(t, vm); err != nil {
			return err
		}
		got, has := lsp.Options["activation-strategy"]
		if lsp.Options["requested-chassis"] != chassis || got != strategy || has != (strategy != "") {
			return fmt.Errorf("row of VM %s has options %v, want chassis %s and strategy %q", vm, lsp.Options, chassis, strategy)
		}
		return nil
	})
	return lsp
}

// mayAttach waits until a launcher has its identity and the permission to attach.
func (e *env) mayAttach(t *testing.T, pod *corev1.Pod, want v1alpha1.Attach) v1alpha1.Identity {
	t.Helper()
	var id v1alpha1.Identity
	eventually(t, func() (err error) {
		id, err = e.identity(t.Context(), client.ObjectKeyFromObject(pod))
		if err == nil && (id.Attach == nil || *id.Attach != want) {
			err = fmt.Errorf("launcher %s may attach by %+v, want %+v", pod.Name, id.Attach, want)
		}
		return err
	})
	return id
}

// vmPort waits until a Port is in the phase.
func (e *env) vmPort(t *testing.T, name types.NamespacedName, phase v1alpha1.PortPhase) *v1alpha1.Port {
	t.Helper()
	var port v1alpha1.Port
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), name, &port); err != nil {
			return err
		}
		if port.Status.Phase != phase {
			return fmt.Errorf("Port %s has status %+v, want phase %s", name, port.Status, phase)
		}
		return nil
	})
	return &port
}

// records waits until a VM has as many PortMigrations, all over, and returns them.
func (e *env) records(t *testing.T, vm types.NamespacedName, n int) []v1alpha1.PortMigration {
	t.Helper()
	var list v1alpha1.PortMigrationList
	eventually(t, func() error {
		if err := e.api.List(t.Context(), &list, client.InNamespace(vm.Namespace)); err != nil {
			return err
		}
		if len(list.Items) != n {
			return fmt.Errorf("%d PortMigrations, want %d", len(list.Items), n)
		}
		for _, pm := range list.Items {
			if pm.Status.Result != v1alpha1.MigrationSucceeded && pm.Status.Result != v1alpha1.MigrationFailed {
				return fmt.Errorf("PortMigration %s: %+v", pm.Name, pm.Status)
			}
		}
		return nil
	})
	return list.Items
}

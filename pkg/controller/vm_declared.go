package controller

// VirtualMachine reconciler: a VM has its Port from the moment at which it is declared, though it does not run.
// In:   VirtualMachines (template, uid), whether they have an instance that may run; their Ports; NetworkAttachmentDefinitions of the template's networks.
// Out:  Ports for NICs that have none, as vm_ports.go makes them; Ports deleted whose NIC the template has no more, unless reclaimPolicy keeps them.

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

type declaredReconciler struct{ *vmReconciler }

// addDeclared lets VirtualMachines be reconciled: by what happens to them, to their instances, and to their Ports.
func addDeclared(p parts, vms *vmReconciler) error {
	byName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: vmOf(o)}}
	})
	return ctrl.NewControllerManagedBy(p.mgr).Named("virtualmachine").For(&kubevirtv1.VirtualMachine{}).
		Watches(&kubevirtv1.VirtualMachineInstance{}, byName).Watches(&v1alpha1.Port{}, byName).
		WatchesRawSource(&p.declared).WithOptions(options(vmWorkers)).Complete(&declaredReconciler{vms})
}

// Reconcile implements reconcile.Reconciler.
func (r *declaredReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var vm kubevirtv1.VirtualMachine
	err := r.api.Get(ctx, req.NamespacedName, &vm, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read VM %s: %w", req.NamespacedName, err)
	}
	vmi, err := r.virt.vmi(ctx, r.api, req.NamespacedName)
	if err != nil || vm.DeletionTimestamp != nil || vm.Spec.Template == nil {
		return reconcile.Result{}, err
	}
	declared := instanceOf(&vm)
	if vmi != nil && vmi.IsFinal() {
		vmi = nil // it stays until the VM is started again, or deleted, and needs nothing
	}
	if vmi == nil { // what runs is the business of vm.go
		err = errors.Join(r.adopt(ctx, req.NamespacedName), r.plug(ctx, req.NamespacedName, declared))
	}
	if err = errors.Join(err, r.unplug(ctx, &vm, append(networksOf(declared), networksOf(vmi)...))); err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", req.NamespacedName, err)
	}
	return reconcile.Result{}, nil
}

// adopt asks for the Ports that are to go with a VM, which does not run, and that nothing owns: they were there before it.
func (r *declaredReconciler) adopt(ctx context.Context, vm types.NamespacedName) error {
	ports, err := portsOf(ctx, r.api, vm)
	for _, p := range ports {
		if p.Spec.ReclaimPolicy == v1alpha1.ReclaimDelete && !slices.ContainsFunc(p.OwnerReferences, ofVM) {
			r.queues.ports.enqueue(client.ObjectKeyFromObject(p))
		}
	}
	return err
}

// plug makes the Ports that a VM lacks, which does not run. What it waits for asks for it again.
func (r *declaredReconciler) plug(ctx context.Context, vm types.NamespacedName, declared *kubevirtv1.VirtualMachineInstance) error {
	if hasPodNetwork(declared) {
		if _, err := r.ensurePort(ctx, declared, podNetwork); err != nil {
			return err
		}
	}
	ports, err := portsByUse(ctx, r.api, r.nb, vm)
	if err != nil {
		return err
	}
	_, err = r.ensureSeconds(ctx, holder{kind: holderDeclared, key: vm}, declared, ports)
	return err
}

// instanceOf is the instance that a VM would have if it was started now. It has no UID.
func instanceOf(vm *kubevirtv1.VirtualMachine) *kubevirtv1.VirtualMachineInstance {
	t := vm.Spec.Template
	return &kubevirtv1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: vm.Namespace, Name: vm.Name, Labels: t.ObjectMeta.Labels, Annotations: t.ObjectMeta.Annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, kubevirtv1.VirtualMachineGroupVersionKind)},
		},
		Spec: t.Spec,
	}
}

// concerned is what an event about a VMI is of: the VM, where the VMI is one that might be.
func concerned(vmi *kubevirtv1.VirtualMachineInstance) runtime.Object {
	if vmi.UID != "" {
		return vmi
	}
	return &kubevirtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: vmi.Namespace, Name: vmi.Name, UID: ownerOf(vmi).UID}}
}

// unplug deletes the Ports of NICs that a VM has no more, which are all but those on networks.
func (r *declaredReconciler) unplug(ctx context.Context, vm *kubevirtv1.VirtualMachine, networks []string) error {
	ports, err := portsOf(ctx, r.api, client.ObjectKeyFromObject(vm))
	if err != nil {
		return err
	}
	for _, p := range ports {
		network := p.Spec.Target.Network
		if slices.Contains(networks, network) || p.DeletionTimestamp != nil || p.Spec.ReclaimPolicy == v1alpha1.ReclaimRetain || !ownedBy(p, vm) {
			continue
		}
		err := r.api.Delete(ctx, p, client.Preconditions{UID: &p.UID})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete Port %s of a NIC that the VM has no more: %w", p.Name, err)
		}
		r.log.Info("Port deleted: the VM's template has no such NIC", "port", p.Namespace+"/"+p.Name, "vm", vm.Name, "network", network)
	}
	return nil
}

// ownedBy says whether a Port goes with a VM.
func ownedBy(port *v1alpha1.Port, vm *kubevirtv1.VirtualMachine) bool {
	for _, o := range port.OwnerReferences {
		if o.UID == vm.UID {
			return true
		}
	}
	return false
}

package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/migration"
)

// behindDelay is how soon to look again when the cache is behind the API: a safety net, for what comes into the cache asks for the VM.
const behindDelay = time.Second

// waits says for how long what was decided from o must not be written yet: while the cache is behind, and while connections are handed over; 0 is not at all.
func (r *vmReconciler) waits(ctx context.Context, vm types.NamespacedName, o observed, d migration.Decision, at time.Time) (time.Duration, error) {
	if d.ByAbsence() {
		live, err := r.decideLive(ctx, vm, o, d)
		if err != nil {
			return 0, fmt.Errorf("VM %s: %s, which must be so in the API too: %w", vm, d.Message, err)
		}
		if !slices.Equal(live.Ports, d.Ports) {
			r.log.Info("the cache is behind the API: a VM's ports stay as they are", "vm", vm, "migration", d.Migration, "cached", d.Reason, "live", live.Reason)
			return behindDelay, nil
		}
	}
	return r.holds(ctx, vm, d, at)
}

// decideLive decides about a VM again, by what the API has now of that which a decision found missing. A leader that has just begun may have rows that are newer than its
// cache: it would take the ports from a launcher or a target for which its predecessor has asked.
func (r *vmReconciler) decideLive(ctx context.Context, vm types.NamespacedName, o observed, d migration.Decision) (migration.Decision, error) {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	err := r.live.Get(ctx, vm, vmi)
	if apierrors.IsNotFound(err) {
		vmi, err = nil, nil
	}
	if err != nil {
		return migration.Decision{}, fmt.Errorf("read the VMI: %w", err)
	}
	if vmi != nil && !hasPodNetwork(vmi) { // as in Reconcile
		vmi = nil
	}
	pods, err := r.launchersLive(ctx, vm, vmi, o.pods, d)
	if err != nil {
		return migration.Decision{}, err
	}
	vmims := o.vmims
	if d.Migration != "" && !slices.ContainsFunc(vmims, func(m *kubevirtv1.VirtualMachineInstanceMigration) bool { return string(m.UID) == d.Migration }) {
		var list kubevirtv1.VirtualMachineInstanceMigrationList // its name is not known
		if err := r.live.List(ctx, &list, client.InNamespace(vm.Namespace)); err != nil {
			return migration.Decision{}, fmt.Errorf("list migrations: %w", err)
		}
		vmims = nil
		for i := range list.Items {
			vmims = append(vmims, &list.Items[i])
		}
	}
	return migration.Decide(migration.Observe(pods, vmi, vmims, o.rows, o.bindings).Fenced(o.gone), o.env), nil
}

// launchersLive are a VM's pods with those among them as the API has them now that a decision has missed: the targets of its migration, or, where it says that the VM does not run, the VMI's launchers. Both have
// KubeVirt's label for it (virt-controller, pkg/virt-controller/services/template.go).
func (r *vmReconciler) launchersLive(
	ctx context.Context, vm types.NamespacedName, vmi *kubevirtv1.VirtualMachineInstance, cached []*corev1.Pod, d migration.Decision,
) ([]*corev1.Pod, error) {
	label, value := kubevirtv1.MigrationJobLabel, d.Migration
	if d.Phase == migration.Stopped {
		if vmi == nil {
			return cached, nil
		}
		label, value = kubevirtv1.CreatedByLabel, string(vmi.UID)
	}
	var live corev1.PodList
	if err := r.live.List(ctx, &live, client.InNamespace(vm.Namespace), client.MatchingLabels{label: value}); err != nil {
		return nil, fmt.Errorf("list the pods with label %s=%s: %w", label, value, err)
	}
	pods := slices.DeleteFunc(slices.Clone(cached), func(pod *corev1.Pod) bool { return pod.Labels[label] == value })
	for i := range live.Items {
		pods = append(pods, &live.Items[i])
	}
	return pods, nil
}

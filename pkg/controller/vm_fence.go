package controller

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// outOfService says whether somebody answers for it that nothing runs on a node.
func outOfService(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// goneNodes are those of pods' nodes that were deleted or are out of service. A pod that is the only one, or has finished, is in nobody's way.
func (r *vmReconciler) goneNodes(ctx context.Context, pods []*corev1.Pod) (map[ident.ChassisName]bool, error) {
	gone := map[ident.ChassisName]bool{}
	for _, pod := range pods {
		name := pod.Spec.NodeName
		if _, asked := gone[ident.ChassisName(name)]; asked || name == "" || len(pods) == 1 || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		var node corev1.Node
		key := types.NamespacedName{Name: name}
		err := r.api.Get(ctx, key, &node, client.UnsafeDisableDeepCopy)
		if apierrors.IsNotFound(err) { // a node that has just joined is not in the cache yet
			err = r.live.Get(ctx, key, &node)
		}
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("read node %s: %w", name, err)
		}
		gone[ident.ChassisName(name)] = err != nil || outOfService(&node)
	}
	return gone, nil
}

// fenced: only that a node goes, and that it is put out of service or back, is of interest to the VMs on it.
func fenced() builder.WatchesOption {
	return builder.WithPredicates(predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, ok := e.ObjectOld.(*corev1.Node)
			now, is := e.ObjectNew.(*corev1.Node)
			return ok && is && outOfService(before) != outOfService(now)
		},
	})
}

// launchersOn asks for the VMs that have a launcher on a node.
func (r *vmReconciler) launchersOn(ctx context.Context, node client.Object) []reconcile.Request {
	var pods corev1.PodList
	if err := r.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		r.log.Error("the VMs of a node that is gone cannot be found", "node", node.GetName(), "error", err)
	}
	var out []reconcile.Request
	for i := range pods.Items {
		pod := &pods.Items[i]
		if vm, _, ok := migration.LauncherOf(pod); ok && pod.Spec.NodeName == node.GetName() {
			out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: vm}})
		}
	}
	return out
}

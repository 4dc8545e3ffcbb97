package controller

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// writeIdentity writes a pod's identity when its annotation says anything else; a pod that is gone needs none.
func writeIdentity(ctx context.Context, api client.Client, pod *corev1.Pod, id v1alpha1.Identity) error {
	text := id.Text()
	if pod.Annotations[v1alpha1.IdentityAnnotation] == text {
		return nil
	}
	err := annotate(ctx, api, pod, corev1.SchemeGroupVersion.WithKind("Pod"), v1alpha1.IdentityAnnotation, text)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("annotate pod %s/%s with its identity: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// annotate writes one annotation of obj, whose kind its own metadata need not name. It fails when obj has been replaced by another of its name, and it asks
// the API server for no more than metadata in return.
func annotate(ctx context.Context, api client.Client, obj client.Object, kind schema.GroupVersionKind, key, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": obj.GetUID(), "annotations": map[string]string{key: value}}})
	if err != nil {
		return err
	}
	answer := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
	answer.SetGroupVersionKind(kind)
	return api.Patch(ctx, answer, client.RawPatch(types.MergePatchType, patch))
}

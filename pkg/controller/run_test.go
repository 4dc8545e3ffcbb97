package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// What is cached of a pod is what is read of it: whoever may write one could fill the controller's memory with the rest.
func TestStripPod(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Name = "p"
	pod.Labels = map[string]string{"app": "x"}
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: "{}", "kubernetes.io/ingress-bandwidth": "10M", "example.com/essay": "much"}
	pod.Spec.NodeName, pod.Spec.Containers = "n1", []corev1.Container{{Name: "c"}}
	pod.Status.PodIP, pod.Status.Message = "10.0.0.2", "much"
	got, err := stripPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.Pod{}
	want.Name = "p"
	want.Labels = map[string]string{"app": "x"}
	want.Annotations = map[string]string{v1alpha1.IdentityAnnotation: "{}", "kubernetes.io/ingress-bandwidth": "10M"}
	want.Spec.NodeName, want.Status.PodIP = "n1", "10.0.0.2"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
}

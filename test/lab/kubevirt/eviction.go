package kubevirt

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// evictions is virt-api's part of an eviction: the API server asks it before it evicts a launcher. It has no state.
type evictions struct{ api client.Client }

// verdict is what is to be said of an eviction: denied when why is not empty, and then perhaps the VM is marked to leave its node.
type verdict struct {
	why  string
	mark bool
}

// judge is KubeVirt's pod-eviction-admitter.go. Nobody evicts a VM that can be evacuated in place of its pod.
func judge(pod *corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) verdict {
	if vmi.Spec.EvictionStrategy == nil {
		return verdict{}
	}
	switch *vmi.Spec.EvictionStrategy {
	case kubevirtv1.EvictionStrategyLiveMigrate:
		if !vmi.IsMigratable() {
			return verdict{why: fmt.Sprintf("VMI %s is configured with an eviction strategy but is not live-migratable", vmi.Name)}
		}
	case kubevirtv1.EvictionStrategyLiveMigrateIfPossible:
		if !vmi.IsMigratable() {
			return verdict{}
		}
	case kubevirtv1.EvictionStrategyExternal:
	default:
		return verdict{}
	}
	triggered := fmt.Sprintf("Eviction triggered evacuation of VMI %q", vmi.Namespace+"/"+vmi.Name)
	switch {
	case vmi.IsMarkedForEviction():
		return verdict{why: "Evacuation in progress: " + triggered}
	case vmi.Status.NodeName != pod.Spec.NodeName:
		return verdict{why: "Eviction request for target Pod"}
	}
	return verdict{why: triggered, mark: true}
}

// ServeHTTP answers an AdmissionReview.
func (e *evictions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, fmt.Sprintf("want an AdmissionReview with a request (%v)", err), http.StatusBadRequest)
		return
	}
	response := &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	if why := e.deny(r.Context(), review.Request); why != "" {
		response.Allowed = false
		response.Result = &metav1.Status{Message: why, Code: http.StatusTooManyRequests}
	}
	review.Request, review.Response = nil, response
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review) // the API server that does not get it says so
}

// deny returns why the pod must not be evicted, or nothing.
func (e *evictions) deny(ctx context.Context, r *admissionv1.AdmissionRequest) string {
	pod, err := get(ctx, e.api, types.NamespacedName{Namespace: r.Namespace, Name: r.Name}, &corev1.Pod{})
	if err != nil || pod == nil || pod.Labels[kubevirtv1.AppLabel] != launcherLabel || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return ""
	}
	name, ok := pod.Annotations[kubevirtv1.DomainAnnotation]
	if !ok {
		return ""
	}
	vmi := &kubevirtv1.VirtualMachineInstance{}
	if err := e.api.Get(ctx, types.NamespacedName{Namespace: r.Namespace, Name: name}, vmi); err != nil {
		return fmt.Sprintf("kubevirt failed getting the vmi: %v", err)
	}
	v := judge(pod, vmi)
	if !v.mark {
		return v.why
	}
	from := client.MergeFrom(vmi.DeepCopy())
	vmi.Status.EvacuationNodeName = pod.Spec.NodeName
	if err := e.api.Patch(ctx, vmi, from, dryRun(r)...); err != nil {
		return fmt.Sprintf("kubevirt failed marking the vmi for eviction: %v", err) // whoever wants the eviction asks again
	}
	return v.why
}

// dryRun: the request itself can be one, or say so in the eviction's options.
func dryRun(r *admissionv1.AdmissionRequest) []client.PatchOption {
	dry := r.DryRun != nil && *r.DryRun
	var eviction policyv1.Eviction
	if err := json.Unmarshal(r.Object.Raw, &eviction); err == nil && eviction.DeleteOptions != nil {
		dry = dry || slices.Contains(eviction.DeleteOptions.DryRun, metav1.DryRunAll)
	}
	if !dry {
		return nil
	}
	return []client.PatchOption{client.DryRunAll}
}

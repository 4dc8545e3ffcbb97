package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// identity is a pod as the API has it and what its annotation says.
type identity struct {
	v1alpha1.Identity
	// UID is the API's, which a static pod's runtime does not know.
	UID string
}

// lookIdentity judges the pod as it is now. done: no event will change the outcome; else err says what is missing.
func lookIdentity(pod *corev1.Pod, ref wire.Pod, maxMTU int) (id identity, done bool, err error) {
	if pod == nil {
		return identity{}, false, fmt.Errorf("pod %s: the API server has not shown it on this node: is it scheduled here, and is the API server reachable?", ref)
	}
	if ref.UID != "" && string(pod.UID) != ref.UID && pod.Annotations[mirrorAnnotation] != ref.UID {
		return identity{}, false, fmt.Errorf("pod %s: the runtime starts the pod with UID %s, but the API server has UID %s: one of them is gone already",
			ref, ref.UID, pod.UID)
	}
	text, ok := pod.Annotations[v1alpha1.IdentityAnnotation]
	if !ok {
		return identity{}, false, fmt.Errorf("pod %s: no annotation %s: is godwit-controller running, and does it report an event on the pod "+
			"(kubectl -n %s describe pod %s)?", ref, v1alpha1.IdentityAnnotation, ref.Namespace, ref.Name)
	}
	parsed, err := v1alpha1.ParseIdentity(text)
	if err != nil {
		return identity{}, true, fmt.Errorf("pod %s: %w", ref, err)
	}
	if parsed.PodUID != string(pod.UID) {
		return identity{}, false, fmt.Errorf("pod %s: annotation %s is for UID %s, the pod has UID %s: only godwit-controller may write it",
			ref, v1alpha1.IdentityAnnotation, parsed.PodUID, pod.UID)
	}
	if parsed.MTU > maxMTU {
		return identity{}, true, fmt.Errorf("pod %s: its MTU %d is over this node's %d: lower spec.mtu of Subnet %s, or raise the MTU of this node's underlay",
			ref, parsed.MTU, maxMTU, parsed.Subnet)
	}
	return identity{Identity: parsed, UID: string(pod.UID)}, true, nil
}

// waitIdentity returns the identity of the pod, or what was missing when ctx ended. A pod that was there and is deleted ends the wait.
func (a *attacher) waitIdentity(ctx context.Context, ref wire.Pod, maxMTU int) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.IdentityTimeout)
	defer cancel()
	var id identity
	var missing error
	seen := false
	err := a.inputs.waitPod(ctx, ref.String(), func(pod *corev1.Pod) (done bool) {
		if pod == nil && seen {
			missing = fmt.Errorf("pod %s: was deleted while it was being attached", ref)
			return true
		}
		seen = seen || pod != nil
		id, done, missing = lookIdentity(pod, ref, maxMTU)
		return done
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return identity{}, fmt.Errorf("%w (waited %s)", missing, a.cfg.IdentityTimeout)
	}
	if err != nil {
		return identity{}, fmt.Errorf("%w (%w)", missing, err)
	}
	return id, missing
}

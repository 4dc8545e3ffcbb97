package kubevirt

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/guest"
	guestpod "github.com/godwit-cni/godwit/test/lab/guest/pod"
)

// Guests are the lab's launchers: QEMU in pods.
type Guests struct {
	// NodeVar returns a node's /var as this process sees it.
	NodeVar func(node string) string
}

// Decorate implements Launchers.
func (g Guests) Decorate(pod *corev1.Pod, memoryMiB int) { guestpod.Add(&pod.Spec, memoryMiB) }

// Connect implements Launchers.
func (g Guests) Connect(ctx context.Context, pod *corev1.Pod) (Launcher, error) {
	return guest.Dial(ctx, g.Dir(pod))
}

// Dir is the directory of a pod's launcher.
func (g Guests) Dir(pod *corev1.Pod) string {
	return guestpod.Dir(g.NodeVar(pod.Spec.NodeName), pod.UID)
}

// Relay implements Launchers.
func (g Guests) Relay(ctx context.Context, source, target *corev1.Pod) (Relay, error) {
	return guest.NewRelay(ctx, g.Dir(source), g.Dir(target))
}

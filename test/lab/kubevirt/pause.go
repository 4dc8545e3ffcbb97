package kubevirt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// vmiPaused pauses the guest as long as PauseAnnotation is there, and lets it run on after that, wherever it is then.
func vmiPaused(w *world) *step {
	pod := w.current()
	if w.vmi.Status.Phase != kubevirtv1.Running || pod == nil || down(pod) {
		return nil
	}
	v, told := w.view(pod.UID), conditionTrue(w.vmi, kubevirtv1.VirtualMachineInstancePaused)
	switch wanted := w.pauseWanted(); {
	case wanted && v.State == guest.Running:
		return w.request(pod, v.again("pause"), func(ctx context.Context, l Launcher) error { return l.Pause(ctx) })
	case wanted && v.State == guest.Paused && !told:
		return w.changeVMI("paused", func(vmi *kubevirtv1.VirtualMachineInstance) {
			w.setCondition(vmi, kubevirtv1.VirtualMachineInstanceCondition{
				Type: kubevirtv1.VirtualMachineInstancePaused, Status: corev1.ConditionTrue, Reason: "PausedByUser", Message: "VMI was paused by user",
			})
		})
	case !wanted && told && v.State == guest.Paused:
		return w.request(pod, v.again("unpause"), func(ctx context.Context, l Launcher) error { return l.Resume(ctx) })
	case !wanted && told && v.State == guest.Running:
		return w.changeVMI("not paused", func(vmi *kubevirtv1.VirtualMachineInstance) {
			vmi.Status.Conditions = slices.DeleteFunc(vmi.Status.Conditions, func(c kubevirtv1.VirtualMachineInstanceCondition) bool {
				return c.Type == kubevirtv1.VirtualMachineInstancePaused
			})
		})
	}
	return nil
}

func (w *world) pauseWanted() bool { return knobsOf(w.vmi).has(PauseAnnotation) }

// arrivedPaused: all of the guest is here, and its processors have never run here.
func (v view) arrivedPaused() bool {
	return v.State == guest.Paused && v.migration() == guest.Completed && !v.ran
}

// again is the name of a request that may be made several times: a new one when the last has been fulfilled.
func (v view) again(request string) string {
	n := 0
	for name, o := range v.asked {
		if strings.HasPrefix(name, request+" ") && o.done {
			n++
		}
	}
	return fmt.Sprintf("%s %d", request, n)
}

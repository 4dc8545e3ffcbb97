package kubevirt

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// watchTimeout is how long a watch may take to deliver what was created.
const watchTimeout = 10 * time.Second

// step is what a rule decides on: one write, one request to a launcher, or a wait.
type step struct {
	// stage can be held and delayed; empty for steps that nobody would want to.
	stage Stage
	// of is the object that the stage is about.
	of types.UID
	// knobs are those that hold and delay.
	knobs knobs
	// why is for the log.
	why string
	do  func(ctx context.Context) error
	// wait, instead of do: look again after that long; 0 means that an event will come.
	wait time.Duration
}

// rule decides what to do about a world; nil when nothing is to be done as far as it is concerned.
type rule func(w *world) *step

// waits is a step that takes none, and lets no rule after it decide.
func waits(why string, d time.Duration) *step { return &step{why: why, wait: d} }

// on says at which stage of which object a step is.
func (s *step) on(stage Stage, of metav1.Object, more ...metav1.Object) *step {
	if s == nil {
		return nil
	}
	s.stage, s.of, s.knobs = stage, of.GetUID(), knobsOf(append([]metav1.Object{of}, more...)...)
	return s
}

// changeVMI patches whatever of the VMI change changes: it has no status subresource. Nil if that is nothing.
func (w *world) changeVMI(why string, change func(vmi *kubevirtv1.VirtualMachineInstance)) *step {
	return patch(w, w.vmi, why, w.engine.api.Patch, change)
}

// changeVMIM patches spec and metadata of a migration.
func (w *world) changeVMIM(m *kubevirtv1.VirtualMachineInstanceMigration, why string, change func(m *kubevirtv1.VirtualMachineInstanceMigration)) *step {
	return patch(w, m, why, w.engine.api.Patch, change)
}

// changeVMIMStatus patches the status of a migration.
func (w *world) changeVMIMStatus(m *kubevirtv1.VirtualMachineInstanceMigration, why string, change func(m *kubevirtv1.VirtualMachineInstanceMigration)) *step {
	return patch(w, m, why, w.engine.statusPatch, change)
}

func (w *world) changePod(p *corev1.Pod, why string, change func(p *corev1.Pod)) *step {
	return patch(w, p, why, w.engine.api.Patch, change)
}

// phase sets a migration's phase and notes when.
func (w *world) phase(m *kubevirtv1.VirtualMachineInstanceMigration, phase kubevirtv1.VirtualMachineInstanceMigrationPhase) *step {
	return w.changeVMIMStatus(m, "phase "+string(phase), func(m *kubevirtv1.VirtualMachineInstanceMigration) {
		m.Status.Phase = phase
		m.Status.PhaseTransitionTimestamps = append(m.Status.PhaseTransitionTimestamps,
			kubevirtv1.VirtualMachineInstanceMigrationPhaseTransitionTimestamp{Phase: phase, PhaseTransitionTimestamp: metav1.NewTime(w.now)})
	})
}

func patch[T client.Object](_ *world, o T, why string, write func(context.Context, client.Object, client.Patch, ...client.PatchOption) error, change func(T)) *step {
	changed, ok := o.DeepCopyObject().(T)
	if !ok {
		return nil // a copy has its original's type
	}
	change(changed)
	if reflect.DeepEqual(o, changed) {
		return nil
	}
	return &step{why: fmt.Sprintf("%T %s: %s", o, o.GetName(), why), do: func(ctx context.Context) error {
		// What a user changed since this was decided makes it fail, and everything is looked at again.
		from := client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{})
		if err := write(ctx, changed, from); err != nil {
			return fmt.Errorf("%T %s/%s: %s: %w", o, o.GetNamespace(), o.GetName(), why, err)
		}
		return nil
	}}
}

// create creates an object, and waits until the watch has delivered it: it must not be created twice.
func (w *world) create(o client.Object) *step {
	return &step{why: fmt.Sprintf("create %T %s%s", o, o.GetName(), o.GetGenerateName()), do: func(ctx context.Context) error {
		if err := w.engine.api.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create %T %s/%s%s: %w", o, o.GetNamespace(), o.GetName(), o.GetGenerateName(), err)
		}
		seen := func(ctx context.Context) (bool, error) {
			err := w.engine.cache.Get(ctx, client.ObjectKeyFromObject(o), o)
			return err == nil, client.IgnoreNotFound(err)
		}
		if err := wait.PollUntilContextTimeout(ctx, time.Millisecond, watchTimeout, true, seen); err != nil {
			return fmt.Errorf("%T %s/%s was created, and the watch does not deliver it: %w", o, o.GetNamespace(), o.GetName(), err)
		}
		return nil
	}}
}

// remove deletes an object, this very one.
func (w *world) remove(o client.Object, why string) *step {
	return &step{why: fmt.Sprintf("delete %T %s: %s", o, o.GetName(), why), do: func(ctx context.Context) error {
		uid := o.GetUID()
		err := w.engine.api.Delete(ctx, o, client.Preconditions{UID: &uid})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %T %s/%s: %w", o, o.GetNamespace(), o.GetName(), err)
		}
		return nil
	}}
}

// request makes a request of a pod's launcher, unless it has been made.
func (w *world) request(p *corev1.Pod, name string, do func(context.Context, Launcher) error) *step {
	v := w.view(p.UID)
	if v.wasAsked(name) {
		return nil
	}
	if !v.connected {
		return waits("launcher "+p.Name+" does not answer yet", 0)
	}
	return &step{why: "launcher " + p.Name + ": " + name, do: func(context.Context) error {
		return w.engine.domains.ask(w.engine.ctx, p.UID, name, do) //nolint:contextcheck // a request outlives the step
	}}
}

// first returns the first step that there is.
func first(w *world, rules ...rule) *step {
	for _, r := range rules {
		if s := r(w); s != nil {
			return s
		}
	}
	return nil
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x == s })
}

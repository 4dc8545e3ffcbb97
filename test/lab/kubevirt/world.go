package kubevirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Labels and annotations of pods that KubeVirt's API package has no names for.
const (
	launcherLabel = "virt-launcher"
	hotplugLabel  = "hotplug-disk"
	// vmiAnnotation, ours, is on an attachment pod: in KubeVirt its VMI is found by way of the launcher that owns it.
	vmiAnnotation = "lab.godwit.dev/vmi"
)

// world is everything that is known of one VM at one moment.
type world struct {
	key types.NamespacedName
	now time.Time
	vm  *kubevirtv1.VirtualMachine         // nil: there is none
	vmi *kubevirtv1.VirtualMachineInstance // nil: there is none
	// launchers are the VMI's pods, the oldest first; attachments those of hotplugged volumes.
	launchers, attachments []*corev1.Pod
	// vmims are the VMI's, the oldest first.
	vmims []*kubevirtv1.VirtualMachineInstanceMigration
	// outbound counts the migrations of other VMs that go on, by the node that they leave; "" is all of them.
	outbound map[string]int
	// node is that of the VMI, nil if there is none or it was not needed.
	node   *corev1.Node
	view   func(types.UID) view
	engine *engine
}

// observe reads all of it from the API server itself, for a step that was just taken must be seen. Only which pods and migrations there are is what the
// watches say: a list that is to be up to date takes the API server a tenth of a second. What a step creates is awaited there, see create.
func (e *engine) observe(ctx context.Context, key types.NamespacedName) (*world, error) {
	w := &world{key: key, now: time.Now(), view: e.domains.view, engine: e}
	var err error
	if w.vm, err = get(ctx, e.api, key, &kubevirtv1.VirtualMachine{}); err != nil {
		return nil, err
	}
	if w.vmi, err = get(ctx, e.api, key, &kubevirtv1.VirtualMachineInstance{}); err != nil {
		return nil, err
	}
	if err := errors.Join(w.observePods(ctx), w.observeMigrations(ctx)); err != nil {
		return nil, err
	}
	if w.vmi != nil && w.vmi.Status.NodeName != "" {
		w.node, err = get(ctx, e.api, types.NamespacedName{Name: w.vmi.Status.NodeName}, &corev1.Node{})
	}
	return w, err
}

func (w *world) observePods(ctx context.Context) error {
	if w.vmi == nil {
		return nil
	}
	kinds, err := labels.NewRequirement(kubevirtv1.AppLabel, selection.In, []string{launcherLabel, hotplugLabel})
	if err != nil {
		return err
	}
	var pods corev1.PodList
	err = w.engine.cache.List(ctx, &pods, client.InNamespace(w.key.Namespace), client.MatchingLabelsSelector{Selector: labels.NewSelector().Add(*kinds)})
	if err != nil {
		return fmt.Errorf("list the pods of VirtualMachineInstance %s: %w", w.key, err)
	}
	for i := range pods.Items {
		known := &pods.Items[i]
		launcher := known.Labels[kubevirtv1.AppLabel] == launcherLabel && metav1.IsControlledBy(known, w.vmi)
		if !launcher && (known.Labels[kubevirtv1.AppLabel] != hotplugLabel || known.Annotations[vmiAnnotation] != w.key.Name) {
			continue
		}
		p, err := get(ctx, w.engine.api, client.ObjectKeyFromObject(known), &corev1.Pod{})
		switch {
		case err != nil:
			return err
		case p == nil:
		case launcher:
			w.launchers = append(w.launchers, p)
		default:
			w.attachments = append(w.attachments, p)
		}
	}
	slices.SortFunc(w.launchers, func(a, b *corev1.Pod) int { return older(a, b) })
	return nil
}

func (w *world) observeMigrations(ctx context.Context) error {
	var vmims kubevirtv1.VirtualMachineInstanceMigrationList
	if err := w.engine.cache.List(ctx, &vmims); err != nil {
		return fmt.Errorf("list VirtualMachineInstanceMigrations: %w", err)
	}
	for i := range vmims.Items {
		known := &vmims.Items[i]
		if known.Namespace != w.key.Namespace || known.Spec.VMIName != w.key.Name {
			continue
		}
		m, err := get(ctx, w.engine.api, client.ObjectKeyFromObject(known), &kubevirtv1.VirtualMachineInstanceMigration{})
		if err != nil {
			return err
		}
		if m != nil {
			w.vmims = append(w.vmims, m)
		}
	}
	slices.SortFunc(w.vmims, func(a, b *kubevirtv1.VirtualMachineInstanceMigration) int { return older(a, b) })
	return w.observeOutbound(ctx, w.engine.api, vmims.Items)
}

// observeOutbound counts only when one of this VM's migrations may have to wait.
func (w *world) observeOutbound(ctx context.Context, api client.Reader, vmims []kubevirtv1.VirtualMachineInstanceMigration) error {
	w.outbound = map[string]int{}
	pending := func(m *kubevirtv1.VirtualMachineInstanceMigration) bool {
		return m.Status.Phase == kubevirtv1.MigrationPending
	}
	if !slices.ContainsFunc(w.vmims, pending) {
		return nil
	}
	for i := range vmims {
		m := &vmims[i]
		if m.Namespace == w.key.Namespace && m.Spec.VMIName == w.key.Name || m.Status.Phase == "" || pending(m) || vmimFinal(m) {
			continue
		}
		vmi, err := get(ctx, api, types.NamespacedName{Namespace: m.Namespace, Name: m.Spec.VMIName}, &kubevirtv1.VirtualMachineInstance{})
		if err != nil {
			return err
		}
		if vmi != nil {
			w.outbound[vmi.Status.NodeName]++
			w.outbound[""]++
		}
	}
	return nil
}

// get returns nil for an object that does not exist.
func get[T client.Object](ctx context.Context, api client.Reader, key types.NamespacedName, into T) (T, error) {
	err := api.Get(ctx, key, into)
	if err == nil {
		return into, nil
	}
	var none T
	if apierrors.IsNotFound(err) {
		return none, nil
	}
	return none, fmt.Errorf("read %T %s: %w", into, key, err)
}

func older(a, b metav1.Object) int {
	return cmp.Or(a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time), cmp.Compare(a.GetName(), b.GetName()))
}

// state is the VMI's record of its last migration; never nil.
func (w *world) state() *kubevirtv1.VirtualMachineInstanceMigrationState {
	if w.vmi == nil || w.vmi.Status.MigrationState == nil {
		return &kubevirtv1.VirtualMachineInstanceMigrationState{}
	}
	return w.vmi.Status.MigrationState
}

// current is the pod in which the VM runs, by the VMI's own record; nil if it is gone.
func (w *world) current() *corev1.Pod {
	s := w.state()
	switch {
	case s.MigrationUID == "":
		i := slices.IndexFunc(w.launchers, func(p *corev1.Pod) bool { return p.Labels[kubevirtv1.MigrationJobLabel] == "" })
		if i < 0 {
			return nil
		}
		return w.launchers[i]
	case s.EndTimestamp != nil && !s.Failed:
		return w.pod(s.TargetPod)
	}
	return w.pod(s.SourcePod)
}

// pod is a launcher by its name; nil if it is gone.
func (w *world) pod(name string) *corev1.Pod {
	for _, p := range w.launchers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// target is the launcher that a migration made; nil if there is none.
func (w *world) target(vmim *kubevirtv1.VirtualMachineInstanceMigration) *corev1.Pod {
	for _, p := range w.launchers {
		if p.Labels[kubevirtv1.MigrationJobLabel] == string(vmim.UID) {
			return p
		}
	}
	return nil
}

// attachment is the hotplug attachment pod that a migration made; nil if there is none.
func (w *world) attachment(vmim *kubevirtv1.VirtualMachineInstanceMigration) *corev1.Pod {
	for _, p := range w.attachments {
		if p.Labels[kubevirtv1.MigrationJobLabel] == string(vmim.UID) {
			return p
		}
	}
	return nil
}

// down: nothing of the pod's launcher runs any more.
func down(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return true
	}
	for i := range p.Status.ContainerStatuses {
		if c := &p.Status.ContainerStatuses[i]; c.Name == computeContainer {
			return c.State.Terminated != nil
		}
	}
	return false
}

// containersReady is what virt-controller calls a ready pod.
func containersReady(p *corev1.Pod) bool {
	for i := range p.Status.ContainerStatuses {
		if !p.Status.ContainerStatuses[i].Ready {
			return false
		}
	}
	return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

func vmiFinal(vmi *kubevirtv1.VirtualMachineInstance) bool {
	return vmi.Status.Phase == kubevirtv1.Succeeded || vmi.Status.Phase == kubevirtv1.Failed
}

func vmimFinal(m *kubevirtv1.VirtualMachineInstanceMigration) bool {
	return m.Status.Phase == kubevirtv1.MigrationSucceeded || m.Status.Phase == kubevirtv1.MigrationFailed
}

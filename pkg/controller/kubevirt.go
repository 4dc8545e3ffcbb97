package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/godwit-cni/godwit/pkg/migration"
)

// The definitions without which there is nothing to watch.
const (
	vmiDefinition  = "virtualmachineinstances.kubevirt.io"
	vmimDefinition = "virtualmachineinstancemigrations.kubevirt.io"
)

// startRetry is how long to wait when KubeVirt's definitions exist but its objects cannot be watched yet: a definition is served a moment after it is made.
const startRetry = 250 * time.Millisecond

// kubevirt is the presence of KubeVirt in the cluster: its kinds can only be watched when they exist, and it may be installed at any time.
type kubevirt struct {
	mgr manager.Manager
	log *slog.Logger
	// start watches VMIs and migrations and lets VMs be reconciled. It is called until it succeeds.
	start   func(context.Context) error
	indexed bool // start has got as far as that

	vms *trigger
	// ready: VMIs can be read.
	ready atomic.Bool
}

// add makes the manager watch KubeVirt's objects from its very start if they exist, so that no VM is ever taken for stopped that has not been read; else
// as soon as they do.
func (k *kubevirt) add(ctx context.Context) error {
	for _, kind := range []schema.GroupVersionKind{kubevirtv1.VirtualMachineInstanceGroupVersionKind, kubevirtv1.VirtualMachineInstanceMigrationGroupVersionKind} {
		_, err := k.mgr.GetRESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) {
			return k.mgr.Add(k)
		}
		if err != nil {
			return fmt.Errorf("find out whether the cluster has KubeVirt: %w", err)
		}
	}
	return k.start(ctx)
}

// enqueue asks for a VM to be reconciled. Without KubeVirt there is none; when it comes, every VM and Port is looked at.
func (k *kubevirt) enqueue(vm types.NamespacedName) {
	if k.ready.Load() {
		k.vms.enqueue(vm)
	}
}

// carries says whether a pod's interface is its VM's, so that the pod has none of its own. A launcher whose VMI is not seen is taken for one: it waits.
func (k *kubevirt) carries(ctx context.Context, api client.Reader, pod *corev1.Pod) (bool, error) {
	name, uid, ok := migration.LauncherOf(pod)
	if !ok {
		return false, nil
	}
	vmi, err := k.vmi(ctx, api, types.NamespacedName{Namespace: pod.Namespace, Name: name})
	return vmi == nil || vmi.UID != uid || hasPodNetwork(vmi), err
}

// vmi is a VM's instance, nil if it has none or KubeVirt is not there. It must not be changed.
func (k *kubevirt) vmi(ctx context.Context, api client.Reader, vm types.NamespacedName) (*kubevirtv1.VirtualMachineInstance, error) {
	if !k.ready.Load() {
		return nil, nil
	}
	var vmi kubevirtv1.VirtualMachineInstance
	err := api.Get(ctx, vm, &vmi, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read VMI %s: %w", vm, err)
	}
	return &vmi, nil
}

// Start implements manager.Runnable: it waits for KubeVirt to be installed. Every replica does, so that one that becomes leader has read the VMs.
func (k *kubevirt) Start(ctx context.Context) error {
	defined := &metav1.PartialObjectMetadata{}
	defined.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	informer, err := k.mgr.GetCache().GetInformer(ctx, defined)
	if err != nil {
		return fmt.Errorf("watch CustomResourceDefinitions for KubeVirt's: %w", err)
	}
	found := make(chan struct{}, 1)
	look := func(obj any) {
		if m, ok := obj.(metav1.Object); ok && (m.GetName() == vmiDefinition || m.GetName() == vmimDefinition) {
			select {
			case found <- struct{}{}:
			default:
			}
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look}); err != nil {
		return fmt.Errorf("watch CustomResourceDefinitions for KubeVirt's: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-found:
		}
		missing, err := k.missing(ctx, defined)
		if err == nil && missing == "" {
			return k.begin(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (k *kubevirt) missing(ctx context.Context, kind *metav1.PartialObjectMetadata) (string, error) {
	for _, name := range []string{vmiDefinition, vmimDefinition} {
		err := k.mgr.GetCache().Get(ctx, types.NamespacedName{Name: name}, kind.DeepCopy())
		if apierrors.IsNotFound(err) {
			return name, nil
		}
		if err != nil {
			return "", fmt.Errorf("read the CustomResourceDefinition %s: %w", name, err)
		}
	}
	return "", nil
}

// begin watches KubeVirt's objects, trying until it succeeds or ctx ends.
func (k *kubevirt) begin(ctx context.Context) error {
	for {
		err := k.start(ctx)
		if err == nil {
			k.log.Info("KubeVirt is there: VMs have ports of their own")
			return nil
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end
		}
		k.log.Warn("KubeVirt's objects cannot be watched yet, trying again", "error", err, "in", startRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(startRetry):
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (k *kubevirt) NeedLeaderElection() bool { return false }

// hasPodNetwork says whether a VMI has a NIC on the pod network. Without a word KubeVirt gives it one.
func hasPodNetwork(vmi *kubevirtv1.VirtualMachineInstance) bool {
	for i := range vmi.Spec.Networks {
		if vmi.Spec.Networks[i].Pod != nil {
			return true
		}
	}
	auto := vmi.Spec.Domain.Devices.AutoattachPodInterface
	return len(vmi.Spec.Networks) == 0 && (auto == nil || *auto)
}

// macOf is the MAC address that a VMI asks for on the pod network, empty if none.
func macOf(vmi *kubevirtv1.VirtualMachineInstance) string {
	for i := range vmi.Spec.Domain.Devices.Interfaces {
		if nic := &vmi.Spec.Domain.Devices.Interfaces[i]; onPodNetwork(vmi, nic.Name) {
			return nic.MacAddress
		}
	}
	return ""
}

// onPodNetwork says whether a VMI's interface of that name is on the pod network.
func onPodNetwork(vmi *kubevirtv1.VirtualMachineInstance, nic string) bool {
	for i := range vmi.Spec.Networks {
		if n := &vmi.Spec.Networks[i]; n.Name == nic {
			return n.Pod != nil
		}
	}
	return false
}

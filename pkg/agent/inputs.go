package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// Sources are where the API objects come from.
type Sources struct {
	// Nodes lists the agent's own Node, Pods the pods of the node, Subnets all Subnets.
	Nodes, Pods, Subnets cache.ListerWatcher
	// Services, EndpointSlices and Ports list all of them; they are not used if the agent serves no Services.
	Services, EndpointSlices, Ports cache.ListerWatcher
	// MigrationsFrom lists the PortMigrations whose source is the node, MigrationsTo those whose target it is.
	MigrationsFrom, MigrationsTo cache.ListerWatcher
	// Addresses reads where a node is reached: its InternalIPs.
	Addresses func(ctx context.Context, node string) ([]netip.Addr, error)
	// Subnet reads one of Subnets without watching. It is not used if none has egress addresses.
	Subnet SubnetReader
}

// inputs holds the API objects and tells who waits for them.
type inputs struct {
	nodeName             string
	nodes, pods, subnets cache.SharedIndexInformer

	mu      sync.Mutex
	waiting map[string]map[chan struct{}]struct{}
	// nodeChanged is called after the Node or a Subnet changed.
	nodeChanged func()
}

func newInputs(nodeName string, src Sources, nodeChanged func()) (*inputs, error) {
	in := &inputs{nodeName: nodeName, waiting: map[string]map[chan struct{}]struct{}{}, nodeChanged: nodeChanged}
	// No resync: every wait and every loop reads the store again when something changed.
	in.nodes = cache.NewSharedIndexInformer(src.Nodes, &corev1.Node{}, 0, nil)
	in.pods = cache.NewSharedIndexInformer(src.Pods, &corev1.Pod{}, 0, cache.Indexers{})
	in.subnets = cache.NewSharedIndexInformer(src.Subnets, &v1alpha1.Subnet{}, 0, nil)
	errs := []error{in.nodes.SetTransform(trimNode), in.pods.SetTransform(trimPod), in.subnets.SetTransform(trimSubnet)}
	notify := cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(any, bool) { nodeChanged() }, UpdateFunc: func(any, any) { nodeChanged() }, DeleteFunc: func(any) { nodeChanged() },
	}
	for _, informer := range []cache.SharedIndexInformer{in.nodes, in.subnets} {
		_, err := informer.AddEventHandler(notify)
		errs = append(errs, err)
	}
	_, err := in.pods.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, _ bool) { in.podChanged(obj) }, UpdateFunc: func(_, obj any) { in.podChanged(obj) }, DeleteFunc: in.podChanged,
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("set informers up: %w", err)
	}
	return in, nil
}

// run runs the informers until ctx ends.
func (in *inputs) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, informer := range []cache.SharedIndexInformer{in.nodes, in.pods, in.subnets} {
		wg.Go(func() { informer.RunWithContext(ctx) })
	}
	wg.Wait()
}

// synced returns when the first lists are here; false if ctx ended before.
func (in *inputs) synced(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), in.nodes.HasSynced, in.pods.HasSynced, in.subnets.HasSynced)
}

// node is nil if there is none (yet).
func (in *inputs) node() *corev1.Node {
	obj, ok, err := in.nodes.GetStore().GetByKey(in.nodeName)
	if err != nil || !ok {
		return nil
	}
	node, _ := obj.(*corev1.Node)
	return node
}

// podCIDRs are the address ranges of all Subnets that are in the network, in no particular order, duplicates included.
func (in *inputs) podCIDRs() []string {
	var out []string
	for _, obj := range in.subnets.GetStore().List() {
		if s, ok := obj.(*v1alpha1.Subnet); ok && s.InNetwork() {
			out = append(out, s.Spec.CIDRs...)
		}
	}
	return out
}

// pod is nil if there is none on this node.
func (in *inputs) pod(key string) *corev1.Pod {
	obj, ok, err := in.pods.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil
	}
	pod, _ := obj.(*corev1.Pod)
	return pod
}

// podsByUID are the pods of this node.
func (in *inputs) podsByUID() map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, obj := range in.pods.GetStore().List() {
		if pod, ok := obj.(*corev1.Pod); ok {
			out[string(pod.UID)] = pod
		}
	}
	return out
}

// waitPod calls done with the pod, nil if there is none, now and after every change, until it returns true. It returns ctx's error.
func (in *inputs) waitPod(ctx context.Context, key string, done func(*corev1.Pod) bool) error {
	ch := make(chan struct{}, 1)
	in.mu.Lock()
	if in.waiting[key] == nil {
		in.waiting[key] = map[chan struct{}]struct{}{}
	}
	in.waiting[key][ch] = struct{}{}
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if delete(in.waiting[key], ch); len(in.waiting[key]) == 0 {
			delete(in.waiting, key)
		}
	}()
	for {
		if done(in.pod(key)) {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (in *inputs) podChanged(obj any) {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return // not an object: nobody waits for it
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for ch := range in.waiting[key] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// mirrorAnnotation on the API's copy of a static pod is the UID that the kubelet knows the static pod by.
const mirrorAnnotation = corev1.MirrorPodAnnotationKey

// trimPod keeps what an attachment needs: a node may have hundreds of pods with long specifications.
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	meta := metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, DeletionTimestamp: pod.DeletionTimestamp,
		CreationTimestamp: pod.CreationTimestamp,
		Annotations:       map[string]string{},
	}
	for _, key := range []string{v1alpha1.IdentityAnnotation, mirrorAnnotation, kubevirtv1.MigrationTargetReadyTimestamp, v1alpha1.SwitchoverAnnotation} {
		if v, ok := pod.Annotations[key]; ok {
			meta.Annotations[key] = v
		}
	}
	if app, ok := pod.Labels[kubevirtv1.AppLabel]; ok { // of a launcher, with its owner: migration.LauncherOf
		meta.Labels = map[string]string{kubevirtv1.AppLabel: app}
	}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		meta.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	return &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork}}, nil
}

func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	meta := metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Annotations: node.Annotations, Labels: node.Labels}
	return &corev1.Node{ObjectMeta: meta, Status: corev1.NodeStatus{Addresses: node.Status.Addresses}}, nil
}

func trimSubnet(obj any) (any, error) {
	if s, ok := obj.(*v1alpha1.Subnet); ok {
		s.ManagedFields = nil
	}
	return obj, nil
}

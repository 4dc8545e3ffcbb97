package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// nadKind is NetworkAttachmentDefinition. One field of it is read, and so it has no Go type here.
var nadKind = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"}

// holderDeclared is the kind of a holder that is a VM which does not run: it waits for definitions, and has no addresses by itself.
const holderDeclared = "declared"

const nadDefinition = "network-attachment-definitions.k8s.cni.cncf.io"

// nads are the NetworkAttachmentDefinitions, and who waits for which: one that comes, or is corrected, is looked at by those that lack an interface for it. It is safe for
// concurrent use.
type nads struct {
	arrival
	queues *queues
	virt   *kubevirt
	// ready: NetworkAttachmentDefinitions can be read.
	ready atomic.Bool

	mu sync.Mutex
	// waiting are those that wait, by what they wait for, and of is the other way round. A pod's holder is podHolder; a VM's has the VM's name for its key.
	waiting map[types.NamespacedName]map[holder]bool
	of      map[holder][]types.NamespacedName
}

func newNADs(mgr manager.Manager, log *slog.Logger, q *queues, virt *kubevirt) *nads {
	n := &nads{
		queues: q, virt: virt, waiting: map[types.NamespacedName]map[holder]bool{}, of: map[holder][]types.NamespacedName{},
		arrival: arrival{
			mgr: mgr, log: log, what: "NetworkAttachmentDefinition", means: "pods and VMs can have second networks", definitions: []string{nadDefinition}, kinds: []schema.GroupVersionKind{nadKind},
		},
	}
	n.start = n.watch
	return n
}

// watch reads the NetworkAttachmentDefinitions, and wakes those who wait for one when it changes.
func (n *nads) watch(ctx context.Context) error {
	kind := &unstructured.Unstructured{}
	kind.SetGroupVersionKind(nadKind)
	informer, err := n.mgr.GetCache().GetInformer(ctx, kind)
	if err != nil {
		return fmt.Errorf("watch NetworkAttachmentDefinitions: %w", err)
	}
	n.ready.Store(true)
	wake := func(obj any) {
		if m, ok := obj.(metav1.Object); ok {
			n.wake(types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()})
		}
	}
	// One that is deleted changes nothing: who has an interface keeps it.
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: wake, UpdateFunc: func(_, now any) { wake(now) }})
	if err != nil {
		return fmt.Errorf("watch NetworkAttachmentDefinitions: %w", err)
	}
	return nil
}

// config is what a NetworkAttachmentDefinition configures; the zero value if there is none (yet).
func (n *nads) config(ctx context.Context, key types.NamespacedName) (nad.Config, error) {
	if !n.ready.Load() {
		return nad.Config{}, nil
	}
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(nadKind)
	err := n.mgr.GetCache().Get(ctx, key, obj, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nad.Config{}, nil
	}
	if err != nil {
		return nad.Config{}, fmt.Errorf("read NetworkAttachmentDefinition %s: %w", key, err)
	}
	text, _, err := unstructured.NestedString(obj.Object, "spec", "config")
	if err != nil {
		return nad.Config{}, fmt.Errorf("NetworkAttachmentDefinition %s: %w: %w", key, errBadNAD, err)
	}
	conf, err := nad.ParseConfig(text)
	if err != nil {
		return nad.Config{}, fmt.Errorf("NetworkAttachmentDefinition %s: %w: %w", key, errBadNAD, err)
	}
	return conf, nil
}

// await makes keys all that h waits for. It comes before they are read, so that no change is missed.
func (n *nads) await(h holder, keys []types.NamespacedName) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range n.of[h] {
		if delete(n.waiting[key], h); len(n.waiting[key]) == 0 {
			delete(n.waiting, key)
		}
	}
	if delete(n.of, h); len(keys) == 0 {
		return
	}
	n.of[h] = keys
	for _, key := range keys {
		if n.waiting[key] == nil {
			n.waiting[key] = map[holder]bool{}
		}
		n.waiting[key][h] = true
	}
}

// wake lets those be looked at who wait for a NetworkAttachmentDefinition.
func (n *nads) wake(key types.NamespacedName) {
	n.mu.Lock()
	holders := slices.Collect(maps.Keys(n.waiting[key]))
	n.mu.Unlock()
	for _, h := range holders {
		switch h.kind {
		case ident.OwnerVM:
			n.virt.enqueue(h.key)
		case holderDeclared:
			n.queues.declared.enqueue(h.key)
		default:
			n.queues.pods.enqueue(h.key)
		}
	}
}

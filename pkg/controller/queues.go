package controller

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// queues are the triggers of the reconcilers, by the kind of object that they take.
type queues struct {
	pods, ports, subnets, nodes trigger
	// egress takes Subnets.
	egress trigger
	// vms is for VMs of KubeVirt: see kubevirt.enqueue.
	vms trigger
	// declared is for the same VMs while they do not run.
	declared trigger
}

// trigger lets one reconciler ask for a key of another to be reconciled. It is a controller-runtime source. Keys that are asked for before the other
// reconciler runs are kept. The zero value is ready; it is safe for concurrent use.
type trigger struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	early []reconcile.Request
}

// Start implements source.Source.
func (t *trigger) Start(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = q
	for _, r := range t.early {
		q.Add(r)
	}
	t.early = nil
	return nil
}

// enqueue asks for key. It never blocks.
func (t *trigger) enqueue(key types.NamespacedName) { t.enqueueAfter(key, 0) }

// enqueueAfter asks for key in a while: several calls within that time are one reconciliation.
func (t *trigger) enqueueAfter(key types.NamespacedName, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := reconcile.Request{NamespacedName: key}
	if t.queue == nil {
		t.early = append(t.early, r)
		return
	}
	t.queue.AddAfter(r, wait)
}

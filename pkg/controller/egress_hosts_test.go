package controller

import (
	"context"
	"errors"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// What a new leader hears of API servers does not let it write the sets before it has read the nodes: they would be missing.
func TestHostsWait(t *testing.T) {
	h := &hosts{restored: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Reconcile(ctx, reconcile.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it to wait", err)
	}
}

package agent

import (
	"context"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// beatTimeout bounds one renewal. Two of them are within the controller's patience.
const beatTimeout = v1alpha1.EgressPatience / 2

// Beat is one renewal of a node's Lease.
type Beat struct {
	// Namespace is where the Lease is.
	Namespace string
	// UID is the Node's, with which the Lease goes.
	UID types.UID
	// Patience is for how long nobody need worry after it.
	Patience time.Duration
}

// Renewer renews the Lease of the agent's own Node, and makes it if there is none.
type Renewer func(ctx context.Context, b Beat) error

// heart says, by a Lease that changes every second, that the node can be the gateway of a Subnet: while some Subnet's egress selects it, and nothing that pods need is missing on
// it. Of a node that is selected by none there is no Lease.
//
// Inputs: the Node's labels, Subnets, readiness. Outputs: Lease egress.NODE.
type heart struct {
	cfg    Config
	log    *slog.Logger
	inputs *inputs
	ready  *readiness
	renew  Renewer
	// heard is when the last renewal that succeeded was begun, zero before; this loop alone uses it.
	heard time.Time
}

// run beats until ctx ends. Its last beat asks for patience: an agent that is replaced is back soon, and the node forwards without it.
func (h *heart) run(ctx context.Context) {
	tick := time.NewTicker(v1alpha1.EgressBeat)
	defer tick.Stop()
	for {
		h.beat(ctx)
		select {
		case <-ctx.Done():
			h.rest(ctx)
			return
		case <-tick.C:
		}
	}
}

func (h *heart) beat(ctx context.Context) {
	node := h.inputs.node()
	if node == nil || h.ready.err() != nil || !h.inputs.selected(node.Labels) {
		h.note(time.Time{}, nil)
		return
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	err := h.renew(ctx, Beat{Namespace: h.cfg.Namespace, UID: node.UID, Patience: v1alpha1.EgressPatience})
	if err == nil {
		h.note(begun, nil)
	} else if begun.Sub(h.heard) > v1alpha1.EgressPatience {
		h.note(time.Time{}, err)
	}
}

// note logs when the node becomes one that can be a gateway, or ceases to be one.
func (h *heart) note(heard time.Time, err error) {
	switch {
	case h.heard.IsZero() && !heard.IsZero():
		h.log.Info("the node can be a gateway: its Lease is renewed", "lease", v1alpha1.EgressLease(h.cfg.NodeName))
	case !h.heard.IsZero() && heard.IsZero():
		h.log.Warn("the node cannot be a gateway any more: it is not selected, not ready, or its Lease could not be renewed", "lease", v1alpha1.EgressLease(h.cfg.NodeName), "error", err)
	}
	h.heard = heard
}

// rest is the last beat.
func (h *heart) rest(ctx context.Context) {
	node := h.inputs.node()
	if h.heard.IsZero() || node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
	defer cancel()
	if err := h.renew(ctx, Beat{Namespace: h.cfg.Namespace, UID: node.UID, Patience: v1alpha1.EgressRestart}); err != nil {
		h.log.Warn("the controller could not be asked for patience: another node may become the gateway while the agent is away", "error", err)
	}
}

// selected says whether some Subnet's egress selects a node with these labels.
func (in *inputs) selected(of map[string]string) bool {
	for _, obj := range in.subnets.GetStore().List() {
		s, ok := obj.(*v1alpha1.Subnet)
		if !ok || s.Spec.EgressMode() != v1alpha1.EgressGateway {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(s.Spec.Egress.NodeSelector); err == nil && selector.Matches(labels.Set(of)) {
			return true
		}
	}
	return false
}

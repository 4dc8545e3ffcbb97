package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

const (
	// beatTimeout bounds one renewal. Two of them are within the controller's patience.
	beatTimeout = v1alpha1.EgressPatience / 2
	// steady is after how many renewals in a row the node takes an address that it did not have: a controller that gives it to another because this one was silent says so after
	// it has done so.
	steady = 2
)

// Beat is one renewal of a node's Lease.
type Beat struct {
	// Namespace is where the Lease is.
	Namespace string
	// UID is the Node's, with which the Lease goes.
	UID types.UID
	// Patience is for how long nobody need worry after it.
	Patience time.Duration
	// Addresses are the egress addresses that the node has.
	Addresses []netip.Addr
}

// Renewer renews the Lease of the agent's own Node, and makes it if there is none.
type Renewer func(ctx context.Context, b Beat) error

// SubnetReader reads a Subnet as the API server has it now, which what is watched may be behind of.
type SubnetReader func(ctx context.Context, name string) (*v1alpha1.Subnet, error)

// heart says, by a Lease that changes every second, that the node can be the gateway of a Subnet: while some Subnet's egress selects it, and nothing that pods need is missing on
// it. Else it is silent: a Lease that there is from before is left as it is, and goes with the Node. The egress addresses that the node has live from one renewal to the next.
//
// Inputs: the Node's labels, Subnets, readiness; of Subnets whose addresses the node is about to take, what the API server says at that moment. Outputs: Lease egress.NODE; through
// loans, egress addresses.
type heart struct {
	cfg    Config
	log    *slog.Logger
	inputs *inputs
	ready  *readiness
	renew  Renewer
	subnet SubnetReader
	loans  *loans
	wake   chan struct{}

	// The rest belongs to run.

	// heard is when the last renewal that succeeded was begun, zero before. running counts those in a row.
	heard   time.Time
	running int
	// held are the addresses that work. Until a renewal has succeeded, which began says, they are what an agent before this one left, for as long as the kernel leaves it.
	held  []netip.Addr
	began bool
	// unread is why a Subnet could not be read, which is logged once.
	unread string
}

// poke asks for a beat now; it never blocks.
func (h *heart) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run beats until ctx ends. Its last beat asks for patience: an agent that is replaced is back soon, and the node forwards without it.
func (h *heart) run(ctx context.Context) {
	tick := time.NewTicker(v1alpha1.EgressBeat)
	defer tick.Stop()
	for {
		if h.beat(ctx) {
			h.poke()
		}
		select {
		case <-ctx.Done():
			h.rest(ctx)
			return
		case <-tick.C:
		case <-h.wake:
		}
	}
}

// beat renews the Lease, then the addresses. The CNI plugin's file and its configuration matter to pods that start, and not to it. It says whether the addresses have changed, which nobody was told.
func (h *heart) beat(ctx context.Context) (again bool) {
	node := h.inputs.node()
	if node == nil || h.ready.lacks(compGateway) || !h.inputs.selected(node.Labels) {
		h.note(time.Time{}, nil)
		h.running, h.held = 0, h.loans.keep(nil, 0)
		return false
	}
	if h.ready.err(compInstall) != nil { // what forwards does so still: the addresses end by themselves if this lasts, as the controller's patience does
		h.running = 0
		return false
	}
	h.inherit()
	begun := time.Now()
	// The process may have stood still, or the node not have been ready for too long.
	h.lapse()
	ctx, cancel := context.WithTimeout(ctx, beatTimeout) // for all that is asked: what is left of the addresses' life is for the next beat
	defer cancel()
	told := h.held
	if err := h.tell(ctx, node.UID, v1alpha1.EgressPatience); err != nil {
		h.running = 0
		if h.began && h.lapsed() {
			h.note(time.Time{}, err)
			h.held = nil
		}
		return false
	}
	h.lapse()   // the answer came too late
	h.inherit() // and so it may have for what was left
	h.began = true
	h.running++
	h.note(begun, nil)
	h.keep(h.due(ctx), begun.Add(v1alpha1.EgressPatience))
	return !slices.Equal(told, h.held)
}

// inherit finds, until a renewal has succeeded, what an agent before this one has left and the kernel has not taken away.
func (h *heart) inherit() {
	if !h.began {
		h.held = h.loans.found(h.inputs.assigned(h.cfg.NodeName))
	}
}

// lapsed says whether the kernel has taken the addresses away since the last renewal: they may be another node's by now.
func (h *heart) lapsed() bool { return time.Since(h.heard) > v1alpha1.EgressPatience }

// lapse forgets what the node had, if it has lapsed. Before the first renewal the node has what an agent before this one left.
func (h *heart) lapse() {
	if !h.heard.IsZero() && h.lapsed() {
		h.running, h.held = 0, nil
	}
}

// due are the addresses that the node shall have: of those that it has by what is watched, of others by what the API server says now. While the node was not heard of another may
// have got them, and that its Lease is renewed again says nothing of how old is what is watched.
func (h *heart) due(ctx context.Context) []netip.Addr {
	var out []netip.Addr
	var err error
	for _, s := range h.inputs.gateways() {
		want := assignedBy(s, h.cfg.NodeName)
		had := slices.DeleteFunc(slices.Clone(want), func(a netip.Addr) bool { return !slices.Contains(h.held, a) })
		if len(had) < len(want) && h.running >= steady {
			now, unread := h.subnet(ctx, s.Name)
			if err = errors.Join(err, unread); unread == nil {
				had = append(had, slices.DeleteFunc(want, func(a netip.Addr) bool { return !slices.Contains(assignedBy(now, h.cfg.NodeName), a) })...)
			}
		}
		out = append(out, had...)
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != h.unread && err != nil {
		h.log.Warn("egress addresses are not taken: whether they are the node's could not be asked", "error", err)
	}
	h.unread = text
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// keep lets the node have addresses until then. If that is now, as when the process stood still, nothing is known of those that it has: the kernel takes them away.
func (h *heart) keep(want []netip.Addr, until time.Time) {
	life := time.Until(until)
	if life < netdev.ShortestLoan {
		h.held = nil
		return
	}
	h.held = h.loans.keep(want, life)
}

func (h *heart) tell(ctx context.Context, uid types.UID, patience time.Duration) error {
	return h.renew(ctx, Beat{Namespace: h.cfg.Namespace, UID: uid, Patience: patience, Addresses: h.held})
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

// rest is the last beat. The addresses stay as long as the controller is patient, unless they may be another node's. Whether the node is ready is not asked: what ends with the agent
// may have said that it is not.
func (h *heart) rest(ctx context.Context) {
	node := h.inputs.node()
	if h.lapsed() || node == nil {
		return
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
	defer cancel()
	if err := h.tell(ctx, node.UID, v1alpha1.EgressRestart); err != nil {
		h.log.Warn("the controller could not be asked for patience: another node may become the gateway while the agent is away", "error", err)
		return
	}
	if !h.lapsed() {
		h.keep(h.held, begun.Add(v1alpha1.EgressRestart))
	}
}

// selected says whether some Subnet's egress selects a node with these labels.
func (in *inputs) selected(of map[string]string) bool {
	return slices.ContainsFunc(in.gateways(), func(s *v1alpha1.Subnet) bool {
		selector, err := metav1.LabelSelectorAsSelector(s.Spec.Egress.NodeSelector)
		return err == nil && selector.Matches(labels.Set(of))
	})
}

// gateways are the Subnets that have a gateway, or want one.
func (in *inputs) gateways() []*v1alpha1.Subnet {
	var out []*v1alpha1.Subnet
	for _, obj := range in.subnets.GetStore().List() {
		if s, ok := obj.(*v1alpha1.Subnet); ok && hasGateway(s) {
			out = append(out, s)
		}
	}
	return out
}

// hasGateway: it has one, or wants one.
func hasGateway(s *v1alpha1.Subnet) bool {
	return s.InNetwork() && s.Spec.EgressMode() == v1alpha1.EgressGateway
}

// assigned are the egress addresses that a node shall have, sorted.
func (in *inputs) assigned(node string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in.gateways() {
		out = append(out, assignedBy(s, node)...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// assignedBy are those that a node shall have for a Subnet.
func assignedBy(s *v1alpha1.Subnet, node string) []netip.Addr {
	var out []netip.Addr
	if !hasGateway(s) || s.Status.EgressNode != node {
		return nil
	}
	for _, text := range s.Spec.Egress.Addresses {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

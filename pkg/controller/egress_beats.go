package controller

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// beats is when the agents of nodes that can be gateways were heard of: when their Leases changed, by this process's own clock. The times in the Leases are of other clocks,
// and tell one beat from another only. It is safe for concurrent use.
type beats struct {
	now func() time.Time

	mu    sync.Mutex
	nodes map[string]beat
}

// beat is the last that was heard of a node.
type beat struct {
	text         string
	last, before time.Time
	// addresses are the egress addresses that it has.
	addresses []netip.Addr
	// patience is after how much silence it has failed.
	patience time.Duration
}

func newBeats(now func() time.Time) *beats {
	return &beats{now: now, nodes: map[string]beat{}}
}

// hear tells of a node's Lease, and says whether that is news: the node had been silent, or has other addresses.
func (b *beats) hear(lease *coordinationv1.Lease) (node string, news bool) {
	node, ok := v1alpha1.EgressLeaseNode(lease.Name)
	if !ok {
		return "", false
	}
	text := ""
	if r := lease.Spec.RenewTime; r != nil {
		text = fmt.Sprint(r.UnixMicro())
	}
	patience := v1alpha1.EgressPatience
	if s := lease.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		patience = min(time.Duration(*s)*time.Second, v1alpha1.EgressRestart)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	was, now := b.nodes[node], b.now()
	if was.text == text {
		return node, false
	}
	addresses := parseAddrs(strings.FieldsFunc(lease.Annotations[v1alpha1.EgressAddressesAnnotation], func(r rune) bool { return r == ',' }))
	b.nodes[node] = beat{text: text, last: now, before: was.last, addresses: addresses, patience: patience}
	return node, was.left(now) <= 0 || !slices.Equal(was.addresses, addresses)
}

// of is the last beat of a node; one that was never heard of has been silent for ever.
func (b *beats) of(node string) beat {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nodes[node]
}

// holder is a node, but one, that has some of these addresses by its last word, and for how long it can be taken at that.
func (b *beats) holder(of []netip.Addr, but string) (node string, left time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for _, node := range slices.Sorted(maps.Keys(b.nodes)) {
		has := b.nodes[node]
		if left := has.left(now); node != but && left > 0 && slices.ContainsFunc(has.addresses, func(a netip.Addr) bool { return slices.Contains(of, a) }) {
			return node, left
		}
	}
	return "", 0
}

// left is for how long the node need not be heard of, zero or less if it has failed.
func (b beat) left(now time.Time) time.Duration {
	if b.last.IsZero() {
		return 0
	}
	return b.last.Add(b.patience).Sub(now)
}

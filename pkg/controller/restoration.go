package controller

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// restoreTimeout bounds the wait for the first reconciliation of each Subnet. A Subnet that takes longer makes its own pods wait, not all.
const restoreTimeout = 10 * time.Second

// restoration is what pods wait for when a controller becomes leader: each Subnet is reconciled once, and so has taken back the addresses that its pods
// have. Until then every pod of a large cluster would find its Subnet missing, and each would get an event that says so. It is safe for concurrent use.
type restoration struct {
	mu      sync.Mutex
	subnets map[string]bool // reconciled at least once
	changed chan struct{}   // closed and replaced when one more is
	done    chan struct{}   // closed at the end
}

func newRestoration() *restoration {
	return &restoration{subnets: map[string]bool{}, changed: make(chan struct{}), done: make(chan struct{})}
}

// reconciled notes that a Subnet was reconciled, with whatever result.
func (r *restoration) reconciled(subnet string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.subnets[subnet] {
		r.subnets[subnet] = true
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// run returns when the Subnets that there are have been reconciled; pods may then go ahead. It is called once, on the leader.
func (r *restoration) run(ctx context.Context, api client.Reader) error {
	var list v1alpha1.SubnetList
	if err := api.List(ctx, &list); err != nil {
		return fmt.Errorf("list Subnets to restore their addresses: %w", err)
	}
	names := []string{DefaultSubnet} // it may have been created a moment ago and not be in the cache
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	timeout := time.NewTimer(restoreTimeout)
	defer timeout.Stop()
	for {
		missing, changed := r.missing(names)
		if !missing {
			break
		}
		select {
		case <-changed:
			continue
		case <-timeout.C:
		case <-ctx.Done():
			return nil
		}
		break
	}
	close(r.done)
	return nil
}

func (r *restoration) missing(names []string) (bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(names, func(n string) bool { return !r.subnets[n] }), r.changed
}

// wait returns nil when pods may be served.
func (r *restoration) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the Subnets' addresses to be restored: %w", context.Cause(ctx))
	}
}

// isDone says whether pods may be served.
func (r *restoration) isDone() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Components that a pod's attachment needs, as readiness names them.
const (
	compAPI         = "API"
	compOVS         = "Open vSwitch"
	compChassis     = "chassis"
	compGateway     = "gateway ovn0"
	compInstall     = "CNI configuration"
	compCertificate = "certificate" // where the southbound database is reached by TLS
)

// errNotReady: a component of the node is missing; the text names it.
var errNotReady = errors.New("node is not ready for pods")

// errPending: something that others make is not there yet. Its arrival is an event that runs the node's loop again.
var errPending = errors.New("waiting")

// readiness is what is still missing on the node. Safe for concurrent use.
type readiness struct {
	mu      sync.Mutex
	missing map[string]string
	// ready is closed while nothing is missing.
	ready chan struct{}
}

func newReadiness(components ...string) *readiness {
	r := &readiness{missing: map[string]string{}, ready: make(chan struct{})}
	for _, c := range components {
		r.missing[c] = "starting"
	}
	return r
}

// set says why a component is missing; an empty reason: it is there. It reports whether that is news.
func (r *readiness) set(component, reason string) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.missing[component]
	if old == reason {
		return false
	}
	wasReady := len(r.missing) == 0
	if reason == "" {
		delete(r.missing, component)
	} else {
		r.missing[component] = reason
	}
	switch isReady := len(r.missing) == 0; {
	case isReady && !wasReady:
		close(r.ready)
	case !isReady && wasReady:
		r.ready = make(chan struct{})
	}
	return true
}

// err is nil when nothing is missing, or nothing beside some components.
func (r *readiness) err(beside ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var reasons []string
	for _, c := range slices.Sorted(maps.Keys(r.missing)) {
		if !slices.Contains(beside, c) {
			reasons = append(reasons, c+": "+r.missing[c])
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errNotReady, strings.Join(reasons, "; "))
}

// lacks says whether a component is missing.
func (r *readiness) lacks(component string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missing[component] != ""
}

// wait returns when nothing is missing, or when ctx ends, with what still is.
func (r *readiness) wait(ctx context.Context) error {
	start := time.Now()
	r.mu.Lock()
	ready := r.ready
	r.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		if err := r.err(); err != nil {
			return fmt.Errorf("%w (%w)", err, waited("the node", start, ctx.Err()))
		}
		return nil
	}
}

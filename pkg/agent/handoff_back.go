package agent

import (
	"context"
	"time"
)

// backTimeout is for how long OVN may take to give the zones of ports out again that it got back. After it what the VM has said since counts more.
const backTimeout = 30 * time.Second

// resume is told of a port that OVN gets back: the VM comes after all, and its connections with it.
func (h *handoff) resume(w *watch) {
	if h == nil {
		return
	}
	r := &w.reception
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over, r.until = false, time.Now().Add(backTimeout)
}

// bringBack puts what clean took out of the zones into them again as soon as they are there: the source tells of it no more. It is to be called again after so long; 0: nothing is left to do.
func (h *handoff) bringBack(ctx context.Context, w *watch) (again time.Duration) {
	if h == nil {
		return 0
	}
	r := &w.reception
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || len(r.kept) == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	err := h.putBack(ctx, w)
	switch {
	case len(r.kept) == 0:
		return 0
	case time.Now().Before(r.until):
		return reopenAgain
	case err == nil:
		err = errNoZone
	}
	w.log.Warn("connections of a VM that comes after all are lost: those that Services, NAT or policies do not let begin in the middle are broken", "zones", len(r.kept), "after", backTimeout, "error", err)
	r.kept = nil
	return 0
}

// putBack does it for the zones that are there; the caller has the lock.
func (h *handoff) putBack(ctx context.Context, w *watch) error {
	r := &w.reception
	zones, err := h.zones(ctx)
	if err != nil {
		return err
	}
	table, err := r.opened(h)
	if err != nil {
		return err
	}
	for name, entries := range r.kept {
		if zones[name] == 0 {
			continue
		}
		result, err := table.Upsert(ctx, zones[name], entries)
		if shared(name) {
			r.bring(name, result.New, nil, h.limit)
		}
		if err != nil {
			r.drop()
			return err
		}
		r.zones[name] = zones[name]
		delete(r.kept, name)
		w.log.Info("connections of a VM that comes after all are put back", "zone", name, "connections", len(entries), "refused", result.Refused)
	}
	return nil
}

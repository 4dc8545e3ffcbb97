package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// undoTimeout bounds the removal of what a failed ADD made; it runs also when the caller has gone. It is less than shutdownTimeout, so that an agent that is told to
// end leaves nothing half made.
const undoTimeout = 5 * time.Second

// withReserve is the one deadline of all that an ADD waits for: so much before the caller's that what was made can be undone and the error still arrives, which
// says what was missing. A caller that has little time is left half of it. Without a deadline of the caller there is none.
func withReserve(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(undoTimeout, time.Until(deadline)/2)))
}

// waited is a wait in vain: for what, how long it was, and by err whether its time was over or its caller went away.
func waited(what string, since time.Time, err error) error {
	return fmt.Errorf("waited %s for %s: %w", time.Since(since).Round(100*time.Millisecond), what, err)
}

func (a *attacher) waitInstalled(ctx context.Context, at *attachment) error {
	start := time.Now()
	err := at.db.WaitInstalled(ctx, at.port.Name)
	if err == nil {
		a.observer.installed(at)
		return nil
	}
	if errors.Is(err, ovs.ErrInterface) {
		return err
	}
	err = waited("OVN", start, err)
	port, perr := at.db.Port(ctx, at.port.Name)
	if perr == nil && port.Ofport == 0 {
		return fmt.Errorf("%w: ovs-vswitchd has not taken the port up: is it running?", err)
	}
	return fmt.Errorf("%w: OVN did not bind port %s here: is ovn-controller running and connected to %s, and does the port exist in NB with "+
		"requested-chassis=%s and iface-id-ver=%s (godwit-controller writes both)?", err, at.port.ID, a.cfg.SBRemote, a.cfg.NodeName, at.port.UID)
}

func (a *attacher) waitBlocked(ctx context.Context, at *attachment) error {
	start := time.Now()
	if err := at.db.WaitBlocked(ctx, at.port.Name); err != nil {
		return fmt.Errorf("%w: OVN did not block port %s here, which migration %s needs: does the port in NB have activation-strategy=%s (godwit-controller writes it), "+
			"and is this chassis the second of its requested-chassis?", waited("OVN", start, err), at.port.ID, at.id.Attach.Migration, v1alpha1.ActivationRARP)
	}
	return nil
}

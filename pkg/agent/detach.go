package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// del removes one attachment, found by container and interface alone. What is absent is removed already. Connection tracking is left alone:
// OVN empties a port's zone itself, and a VM's connections may live on elsewhere under the same address.
func (a *attacher) del(ctx context.Context, req *wire.Request) error {
	unlock, err := a.locks.lock(ctx, req.ContainerID)
	if err != nil {
		return fmt.Errorf("container %s: another operation on it has not ended: %w", req.ContainerID, err)
	}
	defer unlock()
	db, err := a.node.database(ctx)
	if err != nil {
		return err
	}
	name := netdev.HostName(req.ContainerID, req.IfName)
	if err := a.remove(ctx, db, name); err != nil {
		return fmt.Errorf("container %s: detach %s: %w", req.ContainerID, req.IfName, err)
	}
	a.log.Info("detached", "container", req.ContainerID, "ifname", req.IfName, "link", name)
	return nil
}

// gc removes the attachments of the request's network configuration that are not in its list; those of other configurations are not its business. Nor are those on second
// networks of a container that the list has another interface of: who makes the list may know the first interface alone, and a NetworkAttachmentDefinition's
// configuration may be named as the runtime's.
func (a *attacher) gc(ctx context.Context, req *wire.Request) error {
	valid, lives := map[wire.Attachment]bool{}, map[string]bool{}
	for _, v := range req.Valid {
		valid[v], lives[v.ContainerID] = true, true
	}
	return a.sweep(ctx, "not in the runtime's list", func(p ovs.PortStatus) (bool, error) {
		second := p.Owner.IfName != ident.FirstInterface && lives[p.Owner.Container]
		return p.Owner.Conf == req.Conf && !second && !valid[wire.Attachment{ContainerID: p.Owner.Container, IfName: p.Owner.IfName}], nil
	})
}

// removeStale removes attachments that ended without a DEL, as when the node crashed: their link and their namespace are gone. Both must be: a
// namespace's path may be hidden from the agent, and a pod that runs must never lose its port for that.
func (a *attacher) removeStale(ctx context.Context) error {
	return a.sweep(ctx, "its container is gone", func(p ovs.PortStatus) (bool, error) {
		_, found, err := a.host.LinkMAC(p.Name)
		if err != nil || found {
			return false, err
		}
		_, err = os.Stat(p.Owner.Netns)
		return errors.Is(err, fs.ErrNotExist), nil
	})
}

// sweep removes the attachments that stale picks, each under its container's lock.
func (a *attacher) sweep(ctx context.Context, reason string, stale func(ovs.PortStatus) (bool, error)) error {
	db, err := a.node.database(ctx)
	if err != nil {
		return err
	}
	ports, err := db.PodPorts(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range ports {
		gone, err := stale(p)
		if err == nil && gone {
			err = a.sweepOne(ctx, db, p, reason)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *attacher) sweepOne(ctx context.Context, db switchDB, p ovs.PortStatus, reason string) error {
	unlock, err := a.locks.lock(ctx, p.Owner.Container)
	if err != nil {
		return fmt.Errorf("container %s: another operation on it has not ended: %w", p.Owner.Container, err)
	}
	defer unlock()
	// An ADD or DEL may have had the lock meanwhile.
	now, err := db.Port(ctx, p.Name)
	if errors.Is(err, ovs.ErrNoPort) || err == nil && now.Owner != p.Owner {
		return nil
	}
	if err != nil {
		return err
	}
	a.log.Info("removing leftover attachment", "pod", p.Owner.Pod, "container", p.Owner.Container, "link", p.Name, "reason", reason)
	return a.remove(ctx, db, p.Name)
}

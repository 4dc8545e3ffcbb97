package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/types"

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

// check compares an attachment with what ADD would make, and with what the runtime holds to be attached.
func (a *attacher) check(ctx context.Context, req *wire.Request) error {
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
	port, err := db.Port(ctx, name)
	if errors.Is(err, ovs.ErrNoPort) {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no attachment %s", req.ContainerID, req.IfName), err.Error())
	}
	if err != nil {
		return err
	}
	if err := a.ready.wait(ctx); err != nil { // its MTU is not known before
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	at := &attachment{req: req, db: db, log: a.log}
	if at.id, _, err = lookIdentity(a.inputs.pod(req.Pod.String()), req.Pod, a.here()); err != nil {
		return err
	}
	a.plan(at)
	_, found, err := a.host.LinkMAC(name)
	if err != nil {
		return err
	}
	errs := []error{checkPort(port, at.port), checkPrevious(req.Previous, result(at, nil))}
	if !found {
		errs = append(errs, fmt.Errorf("the node has no link %s", name))
	}
	errs = append(errs, a.checkContainer(at))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("pod %s: %w: delete the pod, it is attached anew", req.Pod, err)
	}
	return nil
}

func checkPort(have ovs.PortStatus, want ovs.Port) error {
	switch {
	case have.Port != want:
		return fmt.Errorf("OVS port %s is %+v, want %+v", want.Name, have.Port, want)
	case have.Error != "":
		return fmt.Errorf("OVS port %s: ovs-vswitchd reports: %s", want.Name, have.Error)
	case !have.Installed:
		return fmt.Errorf("OVS port %s: OVN has not bound %s here", want.Name, want.ID)
	}
	return nil
}

// checkPrevious compares the result that the runtime kept with the one that ADD would give now.
func checkPrevious(previous, now *wire.Result) error {
	if previous == nil {
		return nil
	}
	var errs []error
	if previous.Container.MAC != "" && previous.Container.MAC != now.Container.MAC {
		errs = append(errs, fmt.Errorf("prevResult has MAC address %s, want %s", previous.Container.MAC, now.Container.MAC))
	}
	if previous.MTU != 0 && previous.MTU != now.MTU {
		errs = append(errs, fmt.Errorf("prevResult has MTU %d, want %d", previous.MTU, now.MTU))
	}
	for _, ip := range now.IPs {
		found := false
		for _, p := range previous.IPs {
			found = found || p.Address == ip.Address
		}
		if !found {
			errs = append(errs, fmt.Errorf("prevResult lacks address %s", ip.Address))
		}
	}
	return errors.Join(errs...)
}

// gc removes the attachments of the request's network configuration that are not in its list; those of other configurations are not its business.
func (a *attacher) gc(ctx context.Context, req *wire.Request) error {
	valid := map[wire.Attachment]bool{}
	for _, v := range req.Valid {
		valid[v] = true
	}
	return a.sweep(ctx, "not in the runtime's list", func(p ovs.PortStatus) (bool, error) {
		return p.Owner.Conf == req.Conf && !valid[wire.Attachment{ContainerID: p.Owner.Container, IfName: p.Owner.IfName}], nil
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

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

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
	if at.id, _, err = lookIdentity(a.inputs.pod(req.Pod.String()), req.Pod, a.here(req)); err != nil {
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
	if err := comparePorts(have.Port, want); err != nil {
		return err
	}
	switch {
	case have.Error != "":
		return fmt.Errorf("OVS port %s: ovs-vswitchd reports: %s", want.Name, have.Error)
	case !have.Installed:
		return fmt.Errorf("OVS port %s: OVN has not bound %s here", want.Name, want.ID)
	}
	return nil
}

// comparePorts says in words what of a port's row is not as ADD writes it.
func comparePorts(have, want ovs.Port) error {
	var errs []error
	for _, c := range []struct{ what, have, want string }{
		{"OVN port (iface-id)", string(have.ID), string(want.ID)},
		{"version (iface-id-ver)", have.UID, want.UID},
		{"MAC address", have.MAC, want.MAC},
		{"container", have.Owner.Container, want.Owner.Container},
		{"interface of the container", have.Owner.IfName, want.Owner.IfName},
		{"network namespace", have.Owner.Netns, want.Owner.Netns},
		{"pod", have.Owner.Pod, want.Owner.Pod},
		{"CNI configuration", have.Owner.Conf, want.Owner.Conf},
	} {
		if c.have != c.want {
			errs = append(errs, fmt.Errorf("OVS port %s has the %s %q, want %q", want.Name, c.what, c.have, c.want))
		}
	}
	if err := errors.Join(errs...); err != nil || have == want {
		return err
	}
	return fmt.Errorf("OVS port %s is of another type: a pod's is a veth", want.Name)
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

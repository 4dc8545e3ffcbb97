package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// attacher carries CNI operations out. Operations on one container run one after another, others concurrently.
type attacher struct {
	cfg     Config
	log     *slog.Logger
	host    hostNetwork
	inputs  *inputs
	ready   *readiness
	node    *nodeState
	metrics *metrics
	locks   keyLock
	// observer is told of links that a migration may end at; nil: nobody is.
	observer *observer
}

// attachment is one ADD in progress.
type attachment struct {
	req  *wire.Request
	db   switchDB
	id   identity
	veth netdev.Veth
	port ovs.Port
	// pod is the container's side.
	pod netdev.Interface
	log *slog.Logger
}

// add attaches one interface of one container. It either succeeds or leaves nothing behind; for a container that is attached already it
// returns the same result again.
func (a *attacher) add(ctx context.Context, req *wire.Request) (*wire.Result, error) {
	ctx, cancel := withReserve(ctx)
	defer cancel()
	unlock, err := a.locks.lock(ctx, req.ContainerID)
	if err != nil {
		return nil, fmt.Errorf("container %s: another operation on it has not ended: %w", req.ContainerID, err)
	}
	defer unlock()
	if err := a.checkNetns(req.Netns); err != nil {
		return nil, err
	}
	at := &attachment{req: req, log: a.log.With("pod", req.Pod.String(), "container", req.ContainerID, "ifname", req.IfName)}
	if err := a.prepare(ctx, at); err != nil {
		return nil, err
	}
	if res := a.existing(ctx, at); res != nil {
		return res, nil
	}
	if at.id.VMI != nil {
		if err := a.checkNewest(ctx, at); err != nil {
			return nil, err
		}
	}
	if err := a.remove(ctx, at.db, at.veth.Host); err != nil { // of an attempt that was cut short
		return nil, err
	}
	res, err := a.plug(ctx, at)
	if err != nil {
		return nil, errors.Join(err, a.undo(ctx, at))
	}
	return res, nil
}

func (a *attacher) checkNetns(path string) error {
	if err := netdev.CheckNetns(path); err != nil {
		return types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	same, err := a.host.SameNetns(path)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	if same {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS "+path+" is the node's own network namespace", "")
	}
	return nil
}

// prepare waits for all that others provide: the node and the pod's identity.
func (a *attacher) prepare(ctx context.Context, at *attachment) error {
	start := time.Now()
	if err := a.ready.wait(ctx); err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	db, err := a.node.database(ctx)
	if err != nil {
		return err
	}
	at.db = db
	start = a.stage(at, stageReady, start)
	if at.id, err = a.waitIdentity(ctx, at.req); err != nil {
		return err
	}
	a.stage(at, stageIdentity, start)
	if err := a.node.reaches(at.id.IPs); err != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s: %v", at.req.Pod, err), "")
	}
	a.plan(at)
	return nil
}

// plan derives the names and rows; the port's name comes from the pod's, never from the annotation.
func (a *attacher) plan(at *attachment) {
	req, id := at.req, at.id
	noOffload := a.node.datapath == ovs.DatapathNetdev
	mac := net.HardwareAddr(id.MAC)
	owner := ovs.Owner{Container: req.ContainerID, IfName: req.IfName, Netns: req.Netns, Pod: req.Pod.String(), Conf: req.Conf}
	at.veth = netdev.Veth{
		Host: netdev.HostName(req.ContainerID, req.IfName), Netns: req.Netns, Name: req.IfName, MAC: mac, MTU: id.MTU, Alias: aliasOf(id.UID, owner),
		NoOffload: noOffload,
	}
	at.pod = netdev.Interface{Name: req.IfName, MAC: mac, MTU: id.MTU, Addrs: id.IPs, NoOffload: noOffload}
	if id.first() {
		at.pod.Gateways = id.Gateways
	}
	name, version := id.port(req.Pod)
	at.port = ovs.Port{Name: at.veth.Host, ID: name, UID: version, MAC: mac.String(), Owner: owner}
}

// existing is the result of an earlier ADD of the same attachment if everything of it is in place, else nil.
func (a *attacher) existing(ctx context.Context, at *attachment) *wire.Result {
	port, err := at.db.Port(ctx, at.port.Name)
	if err != nil || !port.Installed || port.Port != at.port {
		return nil
	}
	if err := a.checkContainer(at); err != nil {
		return nil
	}
	mac, found, err := a.host.LinkMAC(at.veth.Host)
	if err != nil || !found {
		return nil
	}
	at.log.Info("container is attached already", "port", at.port.ID)
	return result(at, mac)
}

// checkContainer compares the container's side with what it was made as; what KubeVirt makes of a launcher's is as good.
func (a *attacher) checkContainer(at *attachment) error {
	if at.id.VMI != nil {
		return a.host.CheckLauncher(at.req.Netns, at.pod)
	}
	return a.host.CheckContainer(at.req.Netns, at.pod)
}

// plug makes the veth, hands one end to OVN, and prepares the other while OVN binds the port.
func (a *attacher) plug(ctx context.Context, at *attachment) (*wire.Result, error) {
	start := time.Now()
	hostMAC, err := a.host.CreateVeth(at.veth)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", at.req.Pod, err)
	}
	start = a.stage(at, stageVeth, start)
	a.observer.plugging(at)
	if err := at.db.EnsurePort(ctx, at.port); err != nil {
		return nil, fmt.Errorf("pod %s: %w", at.req.Pod, err)
	}
	start = a.stage(at, stageOVS, start)
	if err := a.bringUp(ctx, at); err != nil {
		return nil, fmt.Errorf("pod %s: %w", at.req.Pod, err)
	}
	a.stage(at, stageInstalled, start)
	at.log.Info("attached", "port", at.port.ID, "link", at.veth.Host, "ips", at.id.IPs)
	return result(at, hostMAC), nil
}

// bringUp configures the container's side while OVN binds the port. A migration's target is configured after OVN has blocked it: until then what is meant for
// the VM on the source may reach the target as well, and the pod's own kernel, which has the VM's address until KubeVirt takes it away, would answer with resets.
func (a *attacher) bringUp(ctx context.Context, at *attachment) error {
	switch at.activation() {
	case v1alpha1.ActivationRARP:
		if err := a.waitInstalled(ctx, at); err != nil {
			return err
		}
		if err := a.waitBlocked(ctx, at); err != nil {
			return err
		}
		return a.host.ConfigureContainer(at.req.Netns, at.pod)
	case v1alpha1.ActivationLater:
		return a.host.ConfigureContainer(at.req.Netns, at.pod)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.host.ConfigureContainer(at.req.Netns, at.pod) })
	g.Go(func() error { return a.waitInstalled(ctx, at) })
	return g.Wait()
}

func (at *attachment) activation() v1alpha1.Activation {
	if at.id.Attach == nil {
		return v1alpha1.ActivationNone
	}
	return at.id.Attach.Activation
}

// checkNewest keeps a late ADD of an old launcher from taking the VM's port away from the one that has it.
func (a *attacher) checkNewest(ctx context.Context, at *attachment) error {
	ports, err := at.db.PodPorts(ctx)
	if err != nil {
		return err
	}
	mine := a.inputs.pod(at.req.Pod.String())
	if mine != nil && mine.DeletionTimestamp != nil {
		return fmt.Errorf("launcher pod %s: is being deleted, and does not attach to its VM's port any more", at.req.Pod)
	}
	for _, p := range ports {
		if p.ID != at.port.ID || p.Owner.Pod == at.port.Owner.Pod {
			continue
		}
		other := a.inputs.pod(p.Owner.Pod)
		if mine != nil && other != nil && mine.CreationTimestamp.Before(&other.CreationTimestamp) {
			return fmt.Errorf("launcher pod %s: the younger launcher %s has port %s on this node: delete the pod that does not run the VM",
				at.req.Pod, p.Owner.Pod, at.port.ID)
		}
	}
	return nil
}

// undo removes what plug made, whether or not the caller still waits.
func (a *attacher) undo(ctx context.Context, at *attachment) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := a.remove(ctx, at.db, at.veth.Host); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// remove takes a link off the bridge and deletes it. The port goes first: ovs-vswitchd complains about ports without a link.
func (a *attacher) remove(ctx context.Context, db switchDB, name string) error {
	return errors.Join(db.DeletePorts(ctx, name), a.host.DeleteLink(name))
}

// stage notes how long a stage took and returns the next one's start.
func (a *attacher) stage(at *attachment, name string, start time.Time) time.Time {
	now := time.Now()
	a.metrics.stage(name, now.Sub(start))
	at.log.Debug("stage done", "stage", name, "took", now.Sub(start))
	return now
}

func result(at *attachment, hostMAC net.HardwareAddr) *wire.Result {
	res := &wire.Result{
		Host: wire.Link{Name: at.veth.Host, MAC: hostMAC.String()}, Container: wire.Link{Name: at.pod.Name, MAC: at.pod.MAC.String()},
		Netns: at.req.Netns, MTU: at.pod.MTU,
	}
	for i, addr := range at.pod.Addrs {
		ip := wire.IP{Address: addr}
		if at.id.first() {
			ip.Gateway = at.pod.Gateways[i]
		}
		res.IPs = append(res.IPs, ip)
	}
	return res
}

package controller

// Garbage collector.
// In:   every northbound row of ours, Pods, Nodes, Subnets, Ports.
// Out:  enqueues the pods and nodes whose rows have no object any more, so that their own reconcilers delete them; deletes the switches of Subnets and
//       the rows of Ports that are gone (their finalizer was removed by hand). Makes the network again, and enqueues the objects whose rows may be missing or
//       wrong: every Subnet, Node and Port, and the pods whose rows are.
// It runs when this process becomes leader, every ten minutes, and when the copy of a database was made anew: what was deleted while no controller ran or no
// database could be reached, or by hand, is seen by no watch. The second half is not for a leader that begins: to it every object is news.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

const gcInterval = 10 * time.Minute

type garbageCollector struct {
	api   client.Reader // the manager's cache, which has synced before any runnable starts: nothing is taken for absent that merely has not been read
	nb    *ovn.NB
	sb    *ovn.SB
	alloc *allocations
	*queues
	policies *policies
	services *services
	anchors  *anchors
	hosts    *hosts
	log      *slog.Logger
}

// Start implements manager.Runnable.
func (g *garbageCollector) Start(ctx context.Context) error {
	tick := time.NewTicker(gcInterval)
	defer tick.Stop()
	err := g.collect(ctx)
	for {
		if err != nil {
			g.log.Error("garbage collection", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.nb.Renewed():
			g.log.Info("the northbound database was replaced or restarted: everything is compared with it")
		case <-g.sb.Renewed():
			g.log.Info("the southbound database was replaced or restarted: everything is compared with it")
		}
		err = errors.Join(g.collect(ctx), g.putBack(ctx))
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (g *garbageCollector) NeedLeaderElection() bool { return true }

func (g *garbageCollector) collect(ctx context.Context) error {
	ports, err := g.nb.Ports(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := g.port(ctx, p); err != nil {
			return err
		}
	}
	switches, err := g.nb.Switches(ctx)
	if err != nil {
		return fmt.Errorf("list LogicalSwitches: %w", err)
	}
	for _, s := range switches {
		if s.ExternalIDs[ident.OwnerKey] != ident.OwnerSubnet {
			continue
		}
		name := s.ExternalIDs[ident.KeyName]
		absent, err := g.absent(ctx, types.NamespacedName{Name: name}, &v1alpha1.Subnet{})
		if err != nil {
			return err
		}
		if absent {
			g.log.Info("deleting the switch of a Subnet that is gone", "subnet", name)
			if err := g.nb.Apply(ctx, subnetRemoval(name)...); err != nil {
				return fmt.Errorf("Subnet %s: %w", name, err)
			}
		}
	}
	return nil
}

// putBack lets rows be made again that have vanished or were changed with nobody watching.
func (g *garbageCollector) putBack(ctx context.Context) error {
	g.anchors.rewrite()
	g.hosts.rewrite()
	if err := g.nb.Apply(ctx, networkChanges(g.alloc.join.Spec())...); err != nil {
		return fmt.Errorf("network %s: %w", podNetwork, err)
	}
	for _, kind := range []struct {
		list client.ObjectList
		to   *trigger
	}{{&v1alpha1.SubnetList{}, &g.subnets}, {&v1alpha1.SubnetList{}, &g.egress}, {&corev1.NodeList{}, &g.nodes}, {&v1alpha1.PortList{}, &g.ports}} {
		if err := g.api.List(ctx, kind.list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list %T: %w", kind.list, err)
		}
		err := meta.EachListItem(kind.list, func(o runtime.Object) error {
			obj, err := meta.Accessor(o)
			if err == nil {
				kind.to.enqueue(types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()})
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("read %T: %w", kind.list, err)
		}
	}
	return errors.Join(g.alloc.enqueuePods(ctx, outdated), g.policies.verify(ctx), g.services.verify(ctx))
}

func (g *garbageCollector) port(ctx context.Context, p *nbdb.LogicalSwitchPort) error {
	key := types.NamespacedName{Namespace: p.ExternalIDs[ident.KeyNamespace], Name: p.ExternalIDs[ident.KeyName]}
	if p.ExternalIDs[ident.OwnerKey] == ident.OwnerVM {
		return g.vmPort(ctx, p, key)
	}
	var obj client.Object
	var to *trigger
	switch p.ExternalIDs[ident.OwnerKey] {
	case ident.OwnerPod:
		obj, to = &corev1.Pod{}, &g.pods
	case ident.OwnerNode:
		obj, to = &corev1.Node{}, &g.nodes
	default:
		return nil
	}
	absent, err := g.absent(ctx, key, obj)
	if absent {
		g.log.Info("port without its object", "port", p.Name)
		to.enqueue(key)
	}
	return err
}

// vmPort deletes a VM's row whose Port is gone without having been finalized.
func (g *garbageCollector) vmPort(ctx context.Context, p *nbdb.LogicalSwitchPort, vm types.NamespacedName) error {
	ports, err := portsOf(ctx, g.api, vm)
	if err != nil {
		return err
	}
	for _, port := range ports {
		if string(port.UID) == p.ExternalIDs[ident.KeyUID] {
			return nil
		}
	}
	g.log.Info("deleting the row of a Port that is gone", "port", p.Name)
	g.policies.forgetVM(ident.PortName(p.Name), types.UID(p.ExternalIDs[ident.KeyUID]))
	g.anchors.forget(ident.PortName(p.Name))
	return g.nb.Apply(ctx, ovn.DeletePort(ident.PortName(p.Name)), g.policies.pending(), g.anchors.pending())
}

func (g *garbageCollector) absent(ctx context.Context, key types.NamespacedName, obj client.Object) (bool, error) {
	err := g.api.Get(ctx, key, obj)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %T %s: %w", obj, key, err)
	}
	return false, nil
}

package controller

// Garbage collector.
// In:   every northbound row of ours, Pods, Nodes, Subnets.
// Out:  enqueues the pods and nodes whose rows have no object any more, so that their own reconcilers delete them; deletes the switches of Subnets and
//       the rows of Ports that are gone (their finalizer was removed by hand).
// It runs when this process becomes leader and every ten minutes: what was deleted while no controller ran, or by hand, is seen by no watch.

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	pods  *trigger
	nodes *trigger
	log   *slog.Logger
}

// Start implements manager.Runnable.
func (g *garbageCollector) Start(ctx context.Context) error {
	tick := time.NewTicker(gcInterval)
	defer tick.Stop()
	for {
		if err := g.collect(ctx); err != nil {
			g.log.Error("garbage collection", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (g *garbageCollector) NeedLeaderElection() bool { return true }

func (g *garbageCollector) collect(ctx context.Context) error {
	ports, err := g.nb.Ports(ctx, func(*nbdb.LogicalSwitchPort) bool { return true })
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

func (g *garbageCollector) port(ctx context.Context, p *nbdb.LogicalSwitchPort) error {
	key := types.NamespacedName{Namespace: p.ExternalIDs[ident.KeyNamespace], Name: p.ExternalIDs[ident.KeyName]}
	if p.ExternalIDs[ident.OwnerKey] == ident.OwnerVM {
		return g.vmPort(ctx, p, key)
	}
	var obj client.Object
	var to *trigger
	switch p.ExternalIDs[ident.OwnerKey] {
	case ident.OwnerPod:
		obj, to = &corev1.Pod{}, g.pods
	case ident.OwnerNode:
		obj, to = &corev1.Node{}, g.nodes
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
	return g.nb.Apply(ctx, ovn.DeletePort(ident.PortName(p.Name)))
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

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/test/bench/central"
)

// floors measures what any controller needs: creating the pods, annotating them from one client, and writing their rows with northd at work. Each alone.
func floors(ctx context.Context, cl *central.Cluster, c config, n int) (result, error) {
	r := result{}
	if err := addNodes(ctx, cl, c.nodes, "bench"); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := addPods(ctx, cl, "bench", n, c.nodes); err != nil {
		return nil, err
	}
	r[floorCreate] = seconds(time.Since(start))
	ids, err := identities(n)
	if err != nil {
		return nil, err
	}
	as := rest.CopyConfig(cl.REST)
	as.Impersonate = central.Identity()
	api, err := client.New(as, client.Options{Scheme: cl.API.Scheme()})
	if err != nil {
		return nil, err
	}
	start = time.Now()
	err = central.Each(ctx, central.Range{To: n, AtOnce: controller.Defaults().PodWorkers}, func(ctx context.Context, i int) error {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{v1alpha1.IdentityAnnotation: ids[i].Text()}}})
		if err != nil {
			return err
		}
		return api.Patch(ctx, newPod("bench", podName(i), ""), client.RawPatch(types.MergePatchType, patch))
	})
	if err != nil {
		return nil, fmt.Errorf("annotate pods: %w", err)
	}
	r[floorPatch] = seconds(time.Since(start))
	took, err := rows(ctx, cl, c, ids)
	if err != nil {
		return nil, err
	}
	r[floorRows] = seconds(took)
	return r, backlog(ctx, cl, c, n, r)
}

// backlog starts a controller where all pods wait: their annotations are those of floors, which are for other UIDs.
func backlog(ctx context.Context, cl *central.Cluster, c config, n int, r result) error {
	w, stop, err := watch(ctx, cl)
	if err != nil {
		return err
	}
	defer stop()
	busy, err := readMachine()
	if err != nil {
		return err
	}
	only, err := cl.Controller(ctx, fmt.Sprintf("%d-backlog", n), cl.NB)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := central.Poll(ctx, "all pods are served", func() (bool, error) { return w.counts().served == n, nil }); err != nil {
		return fmt.Errorf("%w: %+v", err, w.counts())
	}
	busyAfter, err := readMachine()
	if err != nil {
		return err
	}
	r[waitedOthers] = busyAfter.others(busy)
	r[waited] = seconds(w.lastServed("bench").Sub(only.Started))
	c.log.Info("a controller that starts has served all pods", "seconds", r[waited])
	m, err := read(ctx, cl, only)
	r[waitedTransactions], r[waitedCPU] = m.transactions, seconds(m.controller.CPU)
	only.Stop()
	return err
}

// identities are of the form and size that the controller writes.
func identities(n int) ([]v1alpha1.Identity, error) {
	spec, err := ipam.ParseSpec(strings.Split(central.DefaultCIDRs, ","), nil, nil)
	if err != nil {
		return nil, err
	}
	pool := ipam.New(spec)
	out := make([]v1alpha1.Identity, n)
	for i := range out {
		uid := fmt.Sprintf("00000000-0000-0000-0000-%012d", i)
		ips, err := pool.Allocate(uid)
		if err != nil {
			return nil, err
		}
		out[i] = v1alpha1.Identity{PodUID: uid, Subnet: "default", IPs: ips, Gateways: spec.Gateways, MTU: 1442, MAC: v1alpha1.MAC(ident.MAC(ips[0].Addr()))}
	}
	return out, nil
}

// rows writes the ports in batches, by the controller's own northbound client.
func rows(ctx context.Context, cl *central.Cluster, c config, ids []v1alpha1.Identity) (time.Duration, error) {
	nb, err := ovn.Connect(ctx, ovn.Config{Endpoints: []string{cl.NB}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	defer nb.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return nb.Run(gctx) })
	ls := ident.SubnetSwitch("floor")
	sw := &nbdb.LogicalSwitch{Name: string(ls), ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerSubnet, ident.KeyName: "floor"}}
	var took time.Duration
	g.Go(func() error {
		defer cancel()
		if err := nb.Apply(gctx, ovn.EnsureSwitch(sw)); err != nil {
			return err
		}
		start := time.Now()
		const batch = 64
		for i := 0; i < len(ids); i += batch {
			var changes []ovn.Change
			for j := i; j < min(i+batch, len(ids)); j++ {
				changes = append(changes, ovn.EnsurePort(ls, topology.Pod("bench", podName(j), ident.DefaultNetwork, ident.ChassisName(central.NodeName(j%c.nodes)), ids[j])))
			}
			if err := nb.Apply(gctx, changes...); err != nil {
				return err
			}
		}
		took = time.Since(start)
		return nb.Apply(gctx, ovn.DeleteSwitch(ls))
	})
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("write rows: %w", err)
	}
	return took, nil
}

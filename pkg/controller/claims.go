package controller

// Guard of claims.
// In:   SB Port_Binding (chassis, additional_chassis, requested_chassis, requested_additional_chassis), names of all Chassis, NB LogicalSwitchPort options:requested-chassis, Nodes (whether they are ready).
// Out:  SB Port_Binding chassis and additional_chassis, emptied of a chassis that the port's row does not ask for; an event of its Node, and of the Port or Pod.
//
// OVN's RBAC lets every node claim every port. An ovn-controller takes only those that it is asked for; whoever has a node's certificate can do otherwise, and would be sent the port's traffic.

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

const (
	// claimLook is how often claims are compared with what is asked for; claimPatience is for how many looks in a row one may contradict it. An ovn-controller that is not asked
	// for a port any more gives it up within a second, on a busy node within a few.
	claimLook     = 5 * time.Second
	claimPatience = 3
)

// claimGuard looks after claims.
type claimGuard struct {
	api    client.Reader
	nb     *ovn.NB
	sb     *ovn.SB
	events events.EventRecorder
	undone *prometheus.CounterVec
	log    *slog.Logger
	// seen are the claims that contradict; had are all claims of the last look, nil before there was one.
	seen map[heldClaim]contradiction
	had  map[heldClaim]bool
}

// contradiction is a claim that is not asked for.
type contradiction struct {
	// looks in a row that it was there.
	looks int
	// fresh: it came under the eyes of this leader, and never was asked for. What a leader finds at its first look may be left of what was.
	fresh bool
}

// heldClaim is a claim without the rows that it was read from.
type heldClaim struct {
	port    ident.PortName
	chassis ident.ChassisName
}

// Start implements manager.Runnable.
func (g *claimGuard) Start(ctx context.Context) error {
	tick := time.NewTicker(claimLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !g.sb.Connected() || !g.nb.Connected() {
			continue // readiness says so
		}
		if err := g.look(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("the claims of ports could not be compared with what is asked for", "error", err)
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (g *claimGuard) NeedLeaderElection() bool { return true }

// forbidden says whether a port's row does not ask for the chassis. Of a row that asks for none, or is not there (yet), nothing can be said.
func forbidden(asked string, chassis ident.ChassisName) bool {
	return asked != "" && !slices.Contains(strings.Split(asked, ","), string(chassis))
}

// northdBehind says whether northd has not taken over yet what a port's row asks for, so that the chassis that has claimed it is still asked for in the southbound database: there an
// ovn-controller that gave the port up would be wrong. Where a chassis of the row is not known nothing can be said: northd then looks for one whose host name that is, and any node may
// have registered under it.
func northdBehind(asked string, c ovn.Claim, known map[ident.ChassisName]bool) bool {
	for name := range strings.SplitSeq(asked, ",") {
		if !known[ident.ChassisName(name)] {
			return false
		}
	}
	return c.Requested
}

func (g *claimGuard) look(ctx context.Context) error {
	claims, err := g.sb.Claims(ctx)
	if err != nil {
		return err
	}
	names, err := g.sb.Chassis(ctx)
	if err != nil {
		return err
	}
	known := map[ident.ChassisName]bool{}
	for _, name := range names {
		known[name] = true
	}
	had, seen := make(map[heldClaim]bool, len(claims)), map[heldClaim]contradiction{}
	for _, c := range claims {
		key := heldClaim{c.Port, c.Chassis}
		had[key] = true
		row, err := g.nb.Port(ctx, c.Port)
		if err != nil {
			return err
		}
		if row == nil || row.ExternalIDs[ident.OwnerKey] == "" {
			continue
		}
		if asked := row.Options[ident.OptionRequestedChassis]; !forbidden(asked, c.Chassis) || northdBehind(asked, c, known) {
			continue
		}
		now, again := g.seen[key]
		now.looks++
		if !again {
			now.fresh = g.had != nil && !g.had[key]
		}
		if seen[key] = now; now.looks < claimPatience {
			continue
		}
		node, down, err := g.node(ctx, c.Chassis)
		if err != nil {
			return err
		}
		if down && !now.fresh { // nobody there can give it up
			continue
		}
		if err := g.undo(ctx, c, row, node); err != nil {
			return err
		}
		delete(seen, key)
		delete(had, key) // it is new if it comes again
	}
	g.seen, g.had = seen, had
	return nil
}

// node is that of a chassis, nil if there is none, and whether it is down.
func (g *claimGuard) node(ctx context.Context, chassis ident.ChassisName) (node *corev1.Node, down bool, err error) {
	node = &corev1.Node{}
	err = g.api.Get(ctx, types.NamespacedName{Name: string(chassis)}, node)
	switch {
	case apierrors.IsNotFound(err):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read node %s: %w", chassis, err)
	}
	return node, !nodeReady(node), nil
}

// undo takes the port from the chassis, and tells.
func (g *claimGuard) undo(ctx context.Context, c ovn.Claim, row *nbdb.LogicalSwitchPort, node *corev1.Node) error {
	if err := g.sb.Unclaim(ctx, c); err != nil {
		return err
	}
	asked := row.Options[ident.OptionRequestedChassis]
	g.undone.WithLabelValues(string(c.Chassis)).Inc()
	g.log.Error("a node had claimed a port that it is not asked for: undone", "port", c.Port, "chassis", c.Chassis, "additional", c.Additional, "asked", asked)
	const reason, action = "ForbiddenClaim", "GuardClaims"
	said := fmt.Sprintf("chassis %s had claimed port %s, which is asked for on %s: undone; look at that node's ovn-controller, and if that is in order, somebody else may have the node's certificate: docs/security.md",
		c.Chassis, c.Port, asked)
	if node != nil {
		g.events.Eventf(node, nil, corev1.EventTypeWarning, reason, action, "%s", said)
	}
	key := types.NamespacedName{Namespace: row.ExternalIDs[ident.KeyNamespace], Name: row.ExternalIDs[ident.KeyName]}
	switch row.ExternalIDs[ident.OwnerKey] {
	case ident.OwnerPod:
		var pod corev1.Pod
		if err := g.api.Get(ctx, key, &pod); err != nil {
			return client.IgnoreNotFound(err)
		}
		g.events.Eventf(&pod, nil, corev1.EventTypeWarning, reason, action, "%s", said)
	case ident.OwnerVM:
		ports, err := portsOf(ctx, g.api, key)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if ident.VMPort(p.Namespace, key.Name, p.Spec.Target.Network) == c.Port {
				g.events.Eventf(p, nil, corev1.EventTypeWarning, reason, action, "%s", said)
			}
		}
	}
	return nil
}

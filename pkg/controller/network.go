package controller

// The network that every Subnet and node joins. Its rows are written when a leader begins (begin), and put back by the garbage collector.

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// podNetwork is the one network that there is.
const podNetwork = ident.DefaultNetwork

// prepare makes what everything else needs: the network, and the default Subnet if there is none of that name.
func prepare(ctx context.Context, api client.Client, nb *ovn.NB, c Config, join ipam.Spec) error {
	if err := nb.Apply(ctx, networkChanges(join)...); err != nil {
		return fmt.Errorf("network %s: %w", podNetwork, err)
	}
	subnet := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: DefaultSubnet}, Spec: v1alpha1.SubnetSpec{CIDRs: c.DefaultCIDRs}}
	if err := api.Create(ctx, subnet); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create the Subnet %s: %w", DefaultSubnet, err)
	}
	return nil
}

// networkChanges make the network that every Subnet and node joins.
func networkChanges(join ipam.Spec) []ovn.Change {
	rows := topology.Network(podNetwork, join)
	changes := append([]ovn.Change{ovn.EnsureRouter(rows.Router), ovn.EnsureGroup(ident.ServiceGroup(podNetwork))}, switchChanges(rows.Join)...)
	for _, p := range rows.Drops {
		changes = append(changes, ovn.EnsurePolicy(ident.Router(podNetwork), p))
	}
	for _, route := range rows.DefaultRoutes {
		changes = append(changes, ovn.EnsureRoute(ident.Router(podNetwork), route))
	}
	return append(changes, ovn.EnsureMeter(policy.Meter()))
}

// switchChanges make a switch, its connection to the router, and what belongs to it.
func switchChanges(rows topology.SwitchRows) []ovn.Change {
	ls := ident.SwitchName(rows.Switch.Name)
	changes := []ovn.Change{
		ovn.EnsureSwitch(rows.Switch),
		ovn.EnsureRouterPort(ident.Router(podNetwork), rows.RouterPort),
		ovn.EnsurePort(ls, rows.Uplink),
	}
	for _, options := range []*nbdb.DHCPOptions{rows.DHCPv4, rows.DHCPv6} {
		if options != nil {
			changes = append(changes, ovn.EnsureDHCP(options))
		}
	}
	for _, p := range rows.Inside {
		changes = append(changes, ovn.EnsurePolicy(ident.Router(podNetwork), p))
	}
	return changes
}

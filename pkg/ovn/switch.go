package ovn

import (
	"context"
	"fmt"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var switchKind = kind[nbdb.LogicalSwitch]{
	table: nbdb.LogicalSwitchTable,
	owned: func(s *nbdb.LogicalSwitch) []any { return []any{&s.OtherConfig, &s.ExternalIDs} },
	uuid:  func(s *nbdb.LogicalSwitch) *string { return &s.UUID },
	ids:   func(s *nbdb.LogicalSwitch) map[string]string { return s.ExternalIDs },
	label: func(s *nbdb.LogicalSwitch) string { return s.Name },
}

// EnsureSwitch makes the LogicalSwitch want.Name. Written: the keys of other_config and external_ids that want names.
func EnsureSwitch(want *nbdb.LogicalSwitch) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Switch(ctx, ident.SwitchName(want.Name))
		if err != nil {
			return nil, err
		}
		return switchKind.ensure(nb, have, want, nil)
	}
}

// EnsureGroup makes the Load_Balancer_Group of that name. What belongs to it is ServiceWriter's.
func EnsureGroup(name string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.LoadBalancerGroup{Name: name})
		if err != nil || have != nil {
			return nil, err
		}
		nb.named++
		ops, err := nb.ovsdb.Create(&nbdb.LoadBalancerGroup{UUID: nb.namedUUID(), Name: name})
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", nbdb.LoadBalancerGroupTable, name, err)
		}
		return plain(ops), nil
	}
}

// EnsureServed makes a switch of ours balance what its ports send by the load balancers of a group. The switch may be made earlier in the same transaction, the group not.
func EnsureServed(ls ident.SwitchName, group string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		g, err := get(ctx, nb, &nbdb.LoadBalancerGroup{Name: group})
		if err != nil {
			return nil, err
		}
		if g == nil {
			return nil, fmt.Errorf("LogicalSwitch %s: the %s %s that it should name does not exist yet", ls, nbdb.LoadBalancerGroupTable, group)
		}
		have, err := nb.Switch(ctx, ls)
		if err != nil || have != nil && slices.Contains(have.LoadBalancerGroup, g.UUID) {
			return nil, err
		}
		return plain([]ovsdb.Operation{{Op: ovsdb.OperationMutate, Table: nbdb.LogicalSwitchTable, Where: named(string(ls)), Mutations: []ovsdb.Mutation{
			*ovsdb.NewMutation("load_balancer_group", ovsdb.MutateOperationInsert, reference(g.UUID)),
		}}}), nil
	}
}

// DeleteSwitch deletes a LogicalSwitch of ours with its ports.
func DeleteSwitch(name ident.SwitchName) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Switch(ctx, name)
		if err != nil || have == nil {
			return nil, err
		}
		if have.ExternalIDs[ident.OwnerKey] == "" {
			return nil, nil
		}
		return plain([]ovsdb.Operation{{Op: ovsdb.OperationDelete, Table: nbdb.LogicalSwitchTable,
			Where: []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: have.UUID})}}}), nil
	}
}

// Switch is the live copy's LogicalSwitch of that name, nil if there is none.
func (nb *NB) Switch(ctx context.Context, name ident.SwitchName) (*nbdb.LogicalSwitch, error) {
	return get(ctx, nb, &nbdb.LogicalSwitch{Name: string(name)})
}

// Switches are all LogicalSwitches of ours.
func (nb *NB) Switches(ctx context.Context) ([]*nbdb.LogicalSwitch, error) {
	var out []*nbdb.LogicalSwitch
	err := nb.ovsdb.WhereCache(func(s *nbdb.LogicalSwitch) bool { return s.ExternalIDs[ident.OwnerKey] != "" }).List(ctx, &out)
	return out, err
}

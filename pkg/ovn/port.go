package ovn

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var portKind = kind[nbdb.LogicalSwitchPort]{
	table: nbdb.LogicalSwitchPortTable,
	owned: func(p *nbdb.LogicalSwitchPort) []any {
		return []any{&p.Addresses, &p.PortSecurity, &p.Type, &p.Dhcpv4Options, &p.Dhcpv6Options, &p.Options, &p.ExternalIDs}
	},
	uuid:  func(p *nbdb.LogicalSwitchPort) *string { return &p.UUID },
	ids:   func(p *nbdb.LogicalSwitchPort) map[string]string { return p.ExternalIDs },
	label: func(p *nbdb.LogicalSwitchPort) string { return p.Name },
}

// portKeysKind is portKind for a writer of map keys alone: the addresses are another's, and are not waited on.
var portKeysKind = kind[nbdb.LogicalSwitchPort]{
	table: portKind.table, uuid: portKind.uuid, ids: portKind.ids, label: portKind.label,
	owned: func(p *nbdb.LogicalSwitchPort) []any { return []any{&p.Options, &p.ExternalIDs} },
}

// EnsurePort makes the LogicalSwitchPort want.Name be as want says, on a switch. Written: addresses, port_security, type, dhcpv4_options, dhcpv6_options, and the keys of options
// and external_ids that want names. A port is never moved from one switch to another: it is deleted and made again.
func EnsurePort(ls ident.SwitchName, want *nbdb.LogicalSwitchPort) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Port(ctx, ident.PortName(want.Name))
		if err != nil {
			return nil, err
		}
		steps, err := portKind.ensure(nb, have, want, &parent{table: nbdb.LogicalSwitchTable, column: "ports", name: string(ls)})
		if err == nil && have == nil {
			nb.created[ident.PortName(want.Name)] = &created{uuid: nb.namedUUID()}
		}
		return steps, err
	}
}

// created is a port that the transaction makes.
type created struct {
	uuid string // a named one
	// joined: it was put into its groups.
	joined bool
}

// PortKeys are map keys of a LogicalSwitchPort with their values; an empty value is the key's absence.
type PortKeys struct{ Options, ExternalIDs map[string]string }

// UpdatePort changes map keys of a LogicalSwitchPort of ours that want names, if the row still says what was observed of the keys that observed names; else
// the error wraps ErrConflict.
func UpdatePort(name ident.PortName, observed, want PortKeys) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Port(ctx, name)
		if err != nil {
			return nil, err
		}
		if have == nil || !says(have.Options, observed.Options) || !says(have.ExternalIDs, observed.ExternalIDs) {
			return nil, fmt.Errorf("LogicalSwitchPort %s: %w", name, ErrConflict)
		}
		next := *have
		next.Options, next.ExternalIDs = with(have.Options, want.Options), with(have.ExternalIDs, want.ExternalIDs)
		return portKeysKind.update(nb, have, &next)
	}
}

// says reports whether a map has the keys, or lacks those whose value is empty.
func says(have, keys map[string]string) bool {
	for k, v := range keys {
		if have[k] != v {
			return false
		}
	}
	return true
}

// with is a copy of a map with keys set, or removed if their value is empty.
func with(have, keys map[string]string) map[string]string {
	next := maps.Clone(have)
	if next == nil {
		next = map[string]string{}
	}
	for k, v := range keys {
		if v == "" {
			delete(next, k)
		} else {
			next[k] = v
		}
	}
	if maps.Equal(next, have) {
		return have
	}
	return next
}

// DeletePort deletes a LogicalSwitchPort of ours.
func DeletePort(name ident.PortName) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Port(ctx, name)
		if err != nil {
			return nil, err
		}
		steps, err := portKind.remove(have, nbdb.LogicalSwitchTable, "ports")
		if len(steps) == 0 || err != nil {
			return nil, err
		}
		return append(leaveGroups(have.UUID), steps...), nil
	}
}

// leaveGroups takes a port out of all port groups. The database does that by itself for a row that is deleted, but not where the same transaction puts another
// port into the group (ovsdb-server 3.1): the UUID of what is gone then stays for ever.
func leaveGroups(uuid string) []step {
	return plain([]ovsdb.Operation{{Op: ovsdb.OperationMutate, Table: nbdb.PortGroupTable,
		Where:     []ovsdb.Condition{ovsdb.NewCondition("ports", ovsdb.ConditionIncludes, reference(uuid))},
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, reference(uuid))}}})
}

// Port is the live copy's LogicalSwitchPort of that name, nil if there is none. It must not be changed.
func (nb *NB) Port(ctx context.Context, name ident.PortName) (*nbdb.LogicalSwitchPort, error) {
	row, err := get(ctx, nb, &nbdb.LogicalSwitchPort{Name: string(name)})
	if err != nil || row == nil || row.Name != string(name) { // where no row has the name, those are found that lack the keys of the other index, that of PodPorts
		return nil, err
	}
	return row, nil
}

// PodPorts are the live copy's LogicalSwitchPorts of a pod's interfaces. They must not be changed.
func (nb *NB) PodPorts(ctx context.Context, namespace, pod string) ([]*nbdb.LogicalSwitchPort, error) {
	var rows []*nbdb.LogicalSwitchPort
	index := &nbdb.LogicalSwitchPort{ExternalIDs: map[string]string{ident.KeyNamespace: namespace, ident.KeyName: pod}}
	if err := nb.ovsdb.Where(index).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read the LogicalSwitchPorts of pod %s/%s: %w", namespace, pod, err)
	}
	return slices.DeleteFunc(rows, func(row *nbdb.LogicalSwitchPort) bool { return row.ExternalIDs[ident.OwnerKey] != ident.OwnerPod }), nil
}

// Ports are all LogicalSwitchPorts of ours.
func (nb *NB) Ports(ctx context.Context) ([]*nbdb.LogicalSwitchPort, error) {
	var out []*nbdb.LogicalSwitchPort
	err := nb.ovsdb.WhereCache(func(p *nbdb.LogicalSwitchPort) bool { return p.ExternalIDs[ident.OwnerKey] != "" }).List(ctx, &out)
	if err != nil {
		return nil, fmt.Errorf("list LogicalSwitchPorts: %w", err)
	}
	return out, nil
}

// get looks a row up by an index in the live copy; nil if it is absent.
func get[T any](ctx context.Context, nb *NB, index *T) (*T, error) {
	var rows []*T
	if err := nb.ovsdb.Where(any(index).(model.Model)).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read %T from the northbound copy: %w", index, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0], nil
}

// find looks a row up by a predicate in the live copy; nil if none matches.
func find[T any](ctx context.Context, nb *NB, match func(*T) bool) (*T, error) {
	var rows []*T
	if err := nb.ovsdb.WhereCache(match).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("search %T in the northbound copy: %w", new(T), err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0], nil
}

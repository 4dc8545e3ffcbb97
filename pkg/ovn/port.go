package ovn

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var portKind = kind[nbdb.LogicalSwitchPort]{
	table: nbdb.LogicalSwitchPortTable,
	owned: func(p *nbdb.LogicalSwitchPort) []any {
		return []any{&p.Addresses, &p.PortSecurity, &p.Type, &p.Options, &p.ExternalIDs}
	},
	uuid:  func(p *nbdb.LogicalSwitchPort) *string { return &p.UUID },
	ids:   func(p *nbdb.LogicalSwitchPort) map[string]string { return p.ExternalIDs },
	label: func(p *nbdb.LogicalSwitchPort) string { return p.Name },
}

// EnsurePort makes the LogicalSwitchPort want.Name be as want says, on a switch. Written: addresses, port_security, type, and the keys of options and
// external_ids that want names. A port is never moved from one switch to another: it is deleted and made again.
func EnsurePort(ls ident.SwitchName, want *nbdb.LogicalSwitchPort) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Port(ctx, ident.PortName(want.Name))
		if err != nil {
			return nil, err
		}
		return portKind.ensure(nb, have, want, &parent{table: nbdb.LogicalSwitchTable, column: "ports", name: string(ls)})
	}
}

// DeletePort deletes a LogicalSwitchPort of ours.
func DeletePort(name ident.PortName) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.Port(ctx, name)
		if err != nil {
			return nil, err
		}
		return portKind.remove(have, nbdb.LogicalSwitchTable, "ports")
	}
}

// Port is the live copy's LogicalSwitchPort of that name, nil if there is none. It must not be changed.
func (nb *NB) Port(ctx context.Context, name ident.PortName) (*nbdb.LogicalSwitchPort, error) {
	return get(ctx, nb, &nbdb.LogicalSwitchPort{Name: string(name)})
}

// Ports are all LogicalSwitchPorts of ours that match.
func (nb *NB) Ports(ctx context.Context, match func(*nbdb.LogicalSwitchPort) bool) ([]*nbdb.LogicalSwitchPort, error) {
	var out []*nbdb.LogicalSwitchPort
	err := nb.ovsdb.WhereCache(func(p *nbdb.LogicalSwitchPort) bool {
		return p.ExternalIDs[ident.OwnerKey] != "" && match(p)
	}).List(ctx, &out)
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

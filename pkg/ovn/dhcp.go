package ovn

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var dhcpKind = kind[nbdb.DHCPOptions]{
	table: nbdb.DHCPOptionsTable,
	owned: func(d *nbdb.DHCPOptions) []any { return []any{&d.Cidr, &d.Options, &d.ExternalIDs} },
	uuid:  func(d *nbdb.DHCPOptions) *string { return &d.UUID },
	ids:   func(d *nbdb.DHCPOptions) map[string]string { return d.ExternalIDs },
	label: func(d *nbdb.DHCPOptions) string { return d.Cidr },
}

// EnsureDHCP makes DHCP options. Those of ours are found by the owner, name and family in their external_ids. Written: cidr, and the keys of options and
// external_ids that want names; an empty value is the key's absence.
func EnsureDHCP(want *nbdb.DHCPOptions) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := find(ctx, nb, func(d *nbdb.DHCPOptions) bool { return sameOwner(d.ExternalIDs, want.ExternalIDs) })
		if err != nil {
			return nil, err
		}
		if have == nil {
			row := *want
			row.Options = with(nil, want.Options)
			return dhcpKind.create(nb, &row, nil)
		}
		next := *have
		next.Cidr, next.Options, next.ExternalIDs = want.Cidr, with(have.Options, want.Options), with(have.ExternalIDs, want.ExternalIDs)
		return dhcpKind.update(nb, have, &next)
	}
}

// DeleteDHCP deletes the DHCP options of one owner, given by its kind and name, of all families.
func DeleteDHCP(owner, name string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		var rows []*nbdb.DHCPOptions
		if err := nb.ovsdb.WhereCache(ofOwner(owner, name)).List(ctx, &rows); err != nil {
			return nil, fmt.Errorf("search the DHCP options of %s %s: %w", owner, name, err)
		}
		var ops []ovsdb.Operation
		for _, row := range rows {
			ops = append(ops, ovsdb.Operation{Op: ovsdb.OperationDelete, Table: nbdb.DHCPOptionsTable,
				Where: []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: row.UUID})}})
		}
		return plain(ops), nil
	}
}

func ofOwner(owner, name string) func(*nbdb.DHCPOptions) bool {
	return func(d *nbdb.DHCPOptions) bool {
		return d.ExternalIDs[ident.OwnerKey] == owner && d.ExternalIDs[ident.KeyName] == name
	}
}

// DHCP are the UUIDs of the live copy's DHCP options of one owner, empty for a family that has none.
func (nb *NB) DHCP(ctx context.Context, owner, name string) (v4, v6 string, _ error) {
	var rows []*nbdb.DHCPOptions
	if err := nb.ovsdb.WhereCache(ofOwner(owner, name)).List(ctx, &rows); err != nil {
		return "", "", fmt.Errorf("search the DHCP options of %s %s: %w", owner, name, err)
	}
	for _, row := range rows {
		if row.ExternalIDs[ident.KeyFamily] == "ip4" {
			v4 = row.UUID
		} else {
			v6 = row.UUID
		}
	}
	return v4, v6, nil
}

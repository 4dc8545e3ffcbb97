package ovn

import (
	"context"

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
// external_ids that want names.
func EnsureDHCP(want *nbdb.DHCPOptions) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := find(ctx, nb, func(d *nbdb.DHCPOptions) bool { return sameOwner(d.ExternalIDs, want.ExternalIDs) })
		if err != nil {
			return nil, err
		}
		return dhcpKind.ensure(nb, have, want, nil)
	}
}

// DeleteDHCP deletes the DHCP options of one owner, given by its kind and name.
func DeleteDHCP(owner, name string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.DHCP(ctx, owner, name)
		if err != nil || have == nil {
			return nil, err
		}
		return plain([]ovsdb.Operation{{Op: ovsdb.OperationDelete, Table: nbdb.DHCPOptionsTable,
			Where: []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: have.UUID})}}}), nil
	}
}

// DHCP is the live copy's DHCP options of one owner, nil if there are none.
func (nb *NB) DHCP(ctx context.Context, owner, name string) (*nbdb.DHCPOptions, error) {
	return find(ctx, nb, func(d *nbdb.DHCPOptions) bool {
		return d.ExternalIDs[ident.OwnerKey] == owner && d.ExternalIDs[ident.KeyName] == name
	})
}

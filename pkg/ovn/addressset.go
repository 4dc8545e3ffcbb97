package ovn

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var setKind = kind[nbdb.AddressSet]{
	table: nbdb.AddressSetTable,
	owned: func(s *nbdb.AddressSet) []any { return []any{&s.Addresses, &s.ExternalIDs} },
	uuid:  func(s *nbdb.AddressSet) *string { return &s.UUID },
	ids:   func(s *nbdb.AddressSet) map[string]string { return s.ExternalIDs },
	label: func(s *nbdb.AddressSet) string { return s.Name },
}

// Later is changes that are known only when their turn to commit has come. They are asked for by each request of a transaction that has them, with its number.
func Later(changes func(transaction int) []Change) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		var all []step
		for _, c := range changes(nb.transaction) {
			s, err := c(ctx, nb)
			if err != nil {
				settle(all, nil, refused{err})
				return nil, err
			}
			all = append(all, s...)
		}
		return all, nil
	}
}

// MakeAddressSet makes the Address_Set want.Name with its addresses if there is none. What is in one that exists is for SetAddresses: the live copy knows names alone.
func MakeAddressSet(want *nbdb.AddressSet) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.AddressSet{Name: want.Name})
		if err != nil {
			return nil, err
		}
		if have != nil && have.ExternalIDs[ident.OwnerKey] == "" {
			return nil, fmt.Errorf("%s %s: %w: delete or rename it", setKind.table, want.Name, ErrNotOurs)
		}
		if have != nil {
			return nil, nil
		}
		return setKind.create(nb, want, nil)
	}
}

// SetAddresses makes the Address_Set of that name have these addresses and no other. settled is told, before anything else is committed, how many sets of the name there are,
// or why that is not known.
func SetAddresses(name string, addresses []string, settled func(sets int, err error)) Change {
	return func(context.Context, *NB) ([]step, error) {
		return []step{{
			op: ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: nbdb.AddressSetTable, Where: named(name),
				Row: ovsdb.Row{"addresses": ovsdb.OvsSet{GoSet: elements(addresses)}}},
			settled: func(r ovsdb.OperationResult, err error) { settled(r.Count, err) },
		}}, nil
	}
}

// DeleteAddressSet deletes an Address_Set of ours.
func DeleteAddressSet(name string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.AddressSet{Name: name})
		if err != nil || have == nil || have.ExternalIDs[ident.OwnerKey] == "" {
			return nil, err
		}
		return plain([]ovsdb.Operation{{Op: ovsdb.OperationDelete, Table: nbdb.AddressSetTable, Where: named(name)}}), nil
	}
}

package ovn

import (
	"context"
	"fmt"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// Claim is that a chassis has a port, be it as the main or as an additional one.
type Claim struct {
	Port    ident.PortName
	Chassis ident.ChassisName
	// Additional: the chassis has it beside the main one.
	Additional bool
	// Requested: the southbound database asks for the chassis, as one or the other, in columns that OVN's RBAC lets no node write. Its options, which nodes write, have no say.
	Requested bool

	port, chassis string // UUIDs of the rows
}

// Claims are those of all ports, read anew: there is no live copy of the bindings of pods.
func (sb *SB) Claims(ctx context.Context) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	names, err := sb.Chassis(ctx)
	if err != nil {
		return nil, err
	}
	results, err := sb.ovsdb.Transact(ctx, ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: sbdb.PortBindingTable, Columns: []string{"_uuid", "logical_port", "chassis", "additional_chassis", "requested_chassis", "requested_additional_chassis"},
		Where: []ovsdb.Condition{{Column: "type", Function: ovsdb.ConditionEqual, Value: ""}},
	})
	if err == nil && (len(results) != 1 || results[0].Error != "") {
		err = fmt.Errorf("%+v", results)
	}
	if err != nil {
		return nil, fmt.Errorf("read the claims of ports: %w", err)
	}
	var out []Claim
	for _, row := range results[0].Rows {
		name, ok := row["logical_port"].(string)
		own := uuids(row["_uuid"])
		if !ok || len(own) != 1 {
			return nil, fmt.Errorf("read the claims of ports: a Port_Binding without name or UUID: %v", row)
		}
		asked := append(uuids(row["requested_chassis"]), uuids(row["requested_additional_chassis"])...)
		for column, additional := range map[string]bool{"chassis": false, "additional_chassis": true} {
			for _, c := range uuids(row[column]) {
				// A chassis that is not in the live copy has come this moment.
				if chassis, known := names[c]; known {
					out = append(out, Claim{Port: ident.PortName(name), Chassis: chassis, Additional: additional, Requested: slices.Contains(asked, c), port: own[0], chassis: c})
				}
			}
		}
	}
	return out, nil
}

// uuids of a column's value: one, or a set of any number.
func uuids(value any) []string {
	switch v := value.(type) {
	case ovsdb.UUID:
		return []string{v.GoUUID}
	case ovsdb.OvsSet:
		var out []string
		for _, one := range v.GoSet {
			out = append(out, uuids(one)...)
		}
		return out
	}
	return nil
}

// Unclaim takes a port from a chassis that has claimed it, if it still has it. Whoever is asked for it claims it by itself.
func (sb *SB) Unclaim(ctx context.Context, c Claim) error {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	row, chassis := ovsdb.UUID{GoUUID: c.port}, ovsdb.UUID{GoUUID: c.chassis}
	where := []ovsdb.Condition{{Column: "_uuid", Function: ovsdb.ConditionEqual, Value: row}}
	op := ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: sbdb.PortBindingTable, Where: where,
		Mutations: []ovsdb.Mutation{{Column: "additional_chassis", Mutator: ovsdb.MutateOperationDelete, Value: ovsdb.OvsSet{GoSet: []any{chassis}}}},
	}
	if !c.Additional {
		where = append(where, ovsdb.Condition{Column: "chassis", Function: ovsdb.ConditionEqual, Value: ovsdb.OvsSet{GoSet: []any{chassis}}})
		op = ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: sbdb.PortBindingTable, Where: where, Row: ovsdb.Row{"chassis": ovsdb.OvsSet{GoSet: []any{}}}}
	}
	results, err := sb.ovsdb.Transact(ctx, op)
	if err == nil && (len(results) != 1 || results[0].Error != "") {
		err = fmt.Errorf("%+v", results)
	}
	if err != nil {
		return fmt.Errorf("take port %s from chassis %s: %w", c.Port, c.Chassis, err)
	}
	return nil
}

package ovn

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// SB is a client of the southbound database with a live copy of the VMs' Port_Bindings and of the chassis' names. All that it writes is that the chassis of
// nodes that are gone go too. It is safe for concurrent use.
type SB struct{ connection }

// ConnectSB reaches the database and fills the live copy. The client reconnects by itself from then on; Run lets it notice a server that has gone without a word.
func ConnectSB(ctx context.Context, c Config) (*SB, error) {
	dbModel, err := model.NewClientDBModel("OVN_Southbound", map[string]model.Model{
		sbdb.PortBindingTable: &sbdb.PortBinding{}, sbdb.ChassisTable: &sbdb.Chassis{},
	})
	if err != nil {
		return nil, fmt.Errorf("southbound model: %w", err)
	}
	dbModel.SetIndexes(map[string][]model.ClientIndex{sbdb.PortBindingTable: {{Columns: []model.ColumnKey{{Column: "logical_port"}}}}})
	db, err := dial(ctx, "southbound", dbModel, c)
	if err != nil {
		return nil, err
	}
	pb, ch := &sbdb.PortBinding{}, &sbdb.Chassis{}
	// Only what is read: "up" and the like change at every commit of a migration, and each change is a decision anew.
	// northd copies the row's external_ids: a cluster has many more pods than VMs, and nothing is read of theirs.
	ofVM := model.Condition{Field: &pb.ExternalIDs, Function: ovsdb.ConditionIncludes, Value: map[string]string{ident.OwnerKey: ident.OwnerVM}}
	err = monitor(ctx, "southbound", db,
		client.WithConditionalTable(pb, []model.Condition{ofVM}, &pb.LogicalPort, &pb.Options, &pb.ExternalIDs, &pb.Chassis, &pb.RequestedAdditionalChassis),
		client.WithTable(ch, &ch.Name))
	if err != nil {
		return nil, err
	}
	return &SB{newConnection(db, c, "southbound", sbdb.PortBindingTable)}, nil
}

// Run keeps the connection alive until ctx ends.
func (sb *SB) Run(ctx context.Context) error { return sb.probe(ctx) }

// Binding is the Port_Binding of a VM's port, nil if there is none. It must not be changed.
func (sb *SB) Binding(ctx context.Context, name ident.PortName) (*sbdb.PortBinding, error) {
	var rows []*sbdb.PortBinding
	// By condition, not by example: an example would be looked up in the table's other index too, whose columns are not monitored and empty in every row.
	pb := &sbdb.PortBinding{}
	byName := model.Condition{Field: &pb.LogicalPort, Function: ovsdb.ConditionEqual, Value: string(name)}
	if err := sb.ovsdb.WhereAll(pb, byName).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read Port_Binding %s: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0], nil
}

// Chassis are the names of all chassis by the UUID of their row.
func (sb *SB) Chassis(ctx context.Context) (map[string]ident.ChassisName, error) {
	var rows []*sbdb.Chassis
	if err := sb.ovsdb.List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("list Chassis: %w", err)
	}
	names := make(map[string]ident.ChassisName, len(rows))
	for _, c := range rows {
		names[c.UUID] = ident.ChassisName(c.Name)
	}
	return names, nil
}

// DeleteChassis deletes what the database has of a chassis: its Chassis, with which its tunnels go and all that it has claimed, and its Chassis_Private. found says whether there was any.
func (sb *SB) DeleteChassis(ctx context.Context, name ident.ChassisName) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	var ops []ovsdb.Operation
	for _, table := range []string{sbdb.ChassisTable, sbdb.ChassisPrivateTable} {
		ops = append(ops, ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: []ovsdb.Condition{{Column: "name", Function: ovsdb.ConditionEqual, Value: string(name)}}})
	}
	results, err := sb.ovsdb.Transact(ctx, ops...)
	if err != nil {
		return false, fmt.Errorf("delete chassis %s: %w", name, err)
	}
	for _, r := range results {
		if r.Error != "" {
			return false, fmt.Errorf("delete chassis %s: %s: %s", name, r.Error, r.Details)
		}
		found = found || r.Count > 0
	}
	return found, nil
}

// Watch calls bound, with the VM's namespace and name, when the Port_Binding of one of its ports is added, changed or deleted, and chassis when a chassis comes
// or goes. Both must return at once.
func (sb *SB) Watch(bound func(namespace, vm string), chassis func()) {
	report := func(row model.Model) {
		switch r := row.(type) {
		case *sbdb.PortBinding:
			bound(r.ExternalIDs[ident.KeyNamespace], r.ExternalIDs[ident.KeyName])
		case *sbdb.Chassis:
			chassis()
		}
	}
	sb.ovsdb.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row model.Model) { report(row) },
		UpdateFunc: func(_ string, _, row model.Model) { report(row) },
		DeleteFunc: func(_ string, row model.Model) { report(row) },
	})
}

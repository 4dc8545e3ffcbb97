package ovn

import (
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// policyACLs makes, changes and deletes ACLs: what permits comes before what goes.
func (t *writing) policyACLs(changes []policy.ACLChange) error {
	for _, a := range changes {
		if a.Delete {
			continue
		}
		if err := t.ensureACL(a.ACL); err != nil {
			return err
		}
	}
	for _, a := range changes {
		if a.Delete {
			t.deleteACL(a.ACL)
		}
	}
	return nil
}

func (t *writing) ensureACL(a policy.ACL) error {
	key := a.Key()
	row := *a.Row
	if uuid, ok := t.acls[key]; ok {
		return t.updateACL(uuid, &row)
	}
	t.nb.named++
	row.UUID = t.nb.namedUUID()
	ops, err := t.nb.ovsdb.Create(&row)
	if err != nil {
		return fmt.Errorf("ACL %+v: %w", key, err)
	}
	t.acls[key] = row.UUID
	for _, op := range ops {
		t.steps = append(t.steps, step{op: op, settled: func(r ovsdb.OperationResult, err error) {
			switch {
			case t.acls[key] != row.UUID: // deleted by the same transaction
			case err == nil:
				t.acls[key] = r.UUID.GoUUID
			default:
				delete(t.acls, key)
			}
			t.done(r, err)
		}})
	}
	t.mutate(nbdb.PortGroupTable, a.Group, "acls", ovsdb.MutateOperationInsert, []any{ovsdb.UUID{GoUUID: row.UUID}})
	return nil
}

func (t *writing) updateACL(uuid string, row *nbdb.ACL) error {
	row.UUID = ""
	m := t.nb.ovsdb.Where(&nbdb.ACL{UUID: uuid})
	ops, err := m.Update(row, &row.Action, &row.Direction, &row.ExternalIDs, &row.Label, &row.Log, &row.Match, &row.Meter, &row.Name, &row.Options, &row.Priority, &row.Severity)
	if err != nil {
		return fmt.Errorf("ACL %s: %w", uuid, err)
	}
	for _, op := range ops {
		t.steps = append(t.steps, step{op: op, settled: t.one})
	}
	return nil
}

// deleteACL takes an ACL out of its group; the database then deletes it.
func (t *writing) deleteACL(a policy.ACL) {
	key := a.Key()
	uuid, ok := t.acls[key]
	if !ok {
		return
	}
	delete(t.acls, key)
	t.dropACL(a.Group, uuid)
	t.steps[len(t.steps)-1].settled = func(r ovsdb.OperationResult, err error) {
		if isRefused(err) {
			t.acls[key] = uuid
		}
		t.one(r, err)
	}
}

func (t *writing) dropACL(group, uuid string) {
	t.mutate(nbdb.PortGroupTable, group, "acls", ovsdb.MutateOperationDelete, []any{ovsdb.UUID{GoUUID: uuid}})
}

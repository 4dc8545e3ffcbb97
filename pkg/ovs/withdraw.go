package ovs

import (
	"context"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// Withdraw takes the iface-id of a port of ours away: OVN gives up its claim, and no frame gets in or out. The link and all else stays, for Restore. A port that is withdrawn already is left as it is.
func (c *Client) Withdraw(ctx context.Context, name string) error {
	return c.move(ctx, name, keyIfaceID, keyWithdrawn)
}

// Restore gives a port of ours the iface-id back that Withdraw took away. A port that has it is left as it is.
func (c *Client) Restore(ctx context.Context, name string) error {
	return c.move(ctx, name, keyWithdrawn, keyIfaceID)
}

// move gives the value of one key to another.
func (c *Client) move(ctx context.Context, name, from, to string) error {
	c.ports.Lock()
	defer c.ports.Unlock()
	rows, err := c.interfaces(ctx, func(i *vswitchdb.Interface) bool { return i.Name == name && ours(i) })
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fmt.Errorf("%w: %s on %s", ErrNoPort, name, ident.IntegrationBridge)
	}
	row := &rows[0]
	id := row.ExternalIDs[from]
	if id == "" {
		return nil
	}
	ops, err := c.ovsdb.Where(row).Mutate(row,
		model.Mutation{Field: &row.ExternalIDs, Mutator: ovsdb.MutateOperationDelete, Value: []string{from}},
		model.Mutation{Field: &row.ExternalIDs, Mutator: ovsdb.MutateOperationInsert, Value: map[string]string{to: id}},
	)
	if err != nil {
		return fmt.Errorf("set %s of Interface %s: %w", to, name, err)
	}
	if err := c.transact(ctx, ops); err != nil {
		return fmt.Errorf("set %s of Interface %s in place of %s: %w", to, name, from, err)
	}
	return nil
}

package ovnpod

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// nodeRole is what OVN's RBAC calls nodes: ovn-sb(5), RBAC_Role.
const nodeRole = "ovn-controller"

// listener is where the southbound database's servers listen for nodes. All members read the same row, so that it has no address.
func (d Database) listener() string {
	at := "pssl:" + strconv.Itoa(d.Port)
	if slices.ContainsFunc(d.Hosts, netip.Addr.Is6) {
		at += ":[::]"
	}
	return at
}

// listen makes the southbound database's only listener the one for nodes, with their role. Another beside it, such as one without a role, would be open to every node.
func (w *Watcher) listen(ctx context.Context) error {
	d := w.Database
	if !d.secure() || d.Kind != ProbeSB {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	have, err := d.listeners(ctx)
	want := connection{Target: d.listener(), Role: nodeRole}
	if err != nil || len(have) == 1 && have[0] == want {
		return err
	}
	w.Log.Info("setting the listener for nodes", "db", d.Name, "from", have, "to", want)
	results, err := d.transact(ctx,
		map[string]any{"op": "insert", "table": "Connection", "uuid-name": "nodes", "row": map[string]any{"target": want.Target, "role": want.Role}},
		map[string]any{"op": "update", "table": "SB_Global", "where": []any{}, "row": map[string]any{"connections": []any{"named-uuid", "nodes"}}},
	)
	if err == nil && results[1].Count == 0 {
		err = fmt.Errorf("%s has no row SB_Global yet: ovn-northd makes it", d.Name)
	}
	if err != nil {
		return fmt.Errorf("set the listener for nodes: %w", err)
	}
	return nil
}

// connection is a row of the table Connection. A role that is absent is an empty one.
type connection struct{ Target, Role string }

func (d Database) listeners(ctx context.Context) ([]connection, error) {
	results, err := d.transact(ctx, map[string]any{"op": "select", "table": "Connection", "where": []any{}, "columns": []string{"target", "role"}})
	if err != nil {
		return nil, fmt.Errorf("read the listeners of %s: %w", d.Name, err)
	}
	var have []connection
	for _, row := range results[0].Rows {
		c := connection{}
		if err := json.Unmarshal(row["target"], &c.Target); err != nil {
			return nil, fmt.Errorf("read the listeners of %s: %w", d.Name, err)
		}
		_ = json.Unmarshal(row["role"], &c.Role) // an empty set is no string
		have = append(have, c)
	}
	return have, nil
}

// result is of one operation: RFC 7047, 5.2.
type result struct {
	Rows           []map[string]json.RawMessage
	Count          int
	Error, Details string
}

// transact has as many results as operations, or an error.
func (d Database) transact(ctx context.Context, operations ...any) ([]result, error) {
	var results []result
	if err := ovs.Call(ctx, d.Socket, "transact", append([]any{d.Name}, operations...), &results); err != nil {
		return nil, err
	}
	for _, r := range results {
		if r.Error != "" {
			return nil, fmt.Errorf("%s: %s", r.Error, r.Details)
		}
	}
	if len(results) < len(operations) {
		return nil, fmt.Errorf("%d results of %d operations", len(results), len(operations))
	}
	return results, nil
}

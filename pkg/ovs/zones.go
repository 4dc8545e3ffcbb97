package ovs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// zonePrefix is what ovn-controller puts before the name of a connection tracking zone (ovn-controller(8), external_ids:ct-zone-*).
const zonePrefix = "ct-zone-"

// Zones reads which connection tracking zones ovn-controller has given out on the node, by the names of ports, and of datapaths with "_dnat" or "_snat" behind them. It asks the database: the bridge's
// external_ids are not in the cache. A zone is flushed before it is there.
func (c *Client) Zones(ctx context.Context) (map[string]uint16, error) {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	op := ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: vswitchdb.BridgeTable, Columns: []string{"external_ids"},
		Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, ident.IntegrationBridge)},
	}
	results, err := c.ovsdb.Transact(ctx, op)
	if err == nil {
		_, err = ovsdb.CheckOperationResults(results, []ovsdb.Operation{op})
	}
	if err != nil {
		return nil, fmt.Errorf("read connection tracking zones of bridge %s: %w", ident.IntegrationBridge, err)
	}
	zones := map[string]uint16{}
	for _, row := range results[0].Rows {
		ids, ok := row["external_ids"].(ovsdb.OvsMap)
		if !ok {
			continue
		}
		for key, value := range ids.GoMap {
			k, _ := key.(string)
			v, _ := value.(string)
			name, ok := strings.CutPrefix(k, zonePrefix)
			if n, err := strconv.ParseUint(v, 10, 16); ok && err == nil && n > 0 {
				zones[name] = uint16(n)
			}
		}
	}
	return zones, nil
}

package central

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	ovsdbclient "github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
)

// Rows of ports with the columns that say that they are there: a bench shares the machine with what it watches.
type (
	// PortRow is a Logical_Switch_Port.
	PortRow struct {
		UUID string `ovsdb:"_uuid"`
		Name string `ovsdb:"name"`
	}
	// BindingRow is a Port_Binding. It has the columns of the table's indexes too: libovsdb asks for those in any case.
	BindingRow struct {
		UUID      string `ovsdb:"_uuid"`
		Port      string `ovsdb:"logical_port"`
		Datapath  string `ovsdb:"datapath"`
		TunnelKey int    `ovsdb:"tunnel_key"`
	}
)

// Origin is tables of a database: a row of each.
type Origin struct {
	Endpoint, Database string
	Tables             map[string]model.Model
}

// Monitor tells h of every change in columns of these tables, those rows included that are there already, until the client is closed.
func Monitor(ctx context.Context, from Origin, h cache.EventHandler, columns ...ovsdbclient.MonitorOption) (ovsdbclient.Client, error) {
	dbModel, err := model.NewClientDBModel(from.Database, from.Tables)
	if err != nil {
		return nil, err
	}
	quiet := logr.FromSlogHandler(slog.DiscardHandler)
	cl, err := ovsdbclient.NewOVSDBClient(dbModel, ovsdbclient.WithEndpoint(from.Endpoint), ovsdbclient.WithLogger(&quiet))
	if err != nil {
		return nil, err
	}
	if err := cl.Connect(ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", from.Database, err)
	}
	cl.Cache().AddEventHandler(h)
	if _, err := cl.Monitor(ctx, cl.NewMonitor(columns...)); err != nil {
		cl.Close()
		return nil, fmt.Errorf("monitor %s: %w", from.Database, err)
	}
	return cl, nil
}

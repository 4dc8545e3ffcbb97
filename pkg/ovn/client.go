package ovn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Deadlines of the northbound connection.
const (
	connectTimeout  = 5 * time.Second
	firstTimeout    = 10 * time.Second
	transactTimeout = 15 * time.Second
	probeInterval   = 5 * time.Second
)

// Config says how to reach the northbound database.
type Config struct {
	// Endpoints in ovsdb(7) form: tcp:HOST:PORT or unix:PATH. With several, the client finds the raft leader.
	Endpoints []string
	// Registerer receives the client's metrics. Required.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// Validate reports every error in c.
func (c Config) Validate() error {
	var errs []error
	if len(c.Endpoints) == 0 {
		errs = append(errs, errors.New("no northbound endpoint given: want tcp:HOST:PORT or unix:PATH"))
	}
	for _, e := range c.Endpoints {
		if !strings.HasPrefix(e, "tcp:") && !strings.HasPrefix(e, "unix:") {
			errs = append(errs, fmt.Errorf("northbound endpoint %q: want tcp:HOST:PORT or unix:PATH", e))
		}
	}
	return errors.Join(errs...)
}

// NB is a client of the northbound database with a live copy of the tables that Godwit uses. It is safe for concurrent use.
type NB struct {
	ovsdb   client.Client
	log     *slog.Logger
	queue   chan *request
	metrics *metrics
	named   int // counts named UUIDs; used by the commit loop alone
}

// Connect reaches the database and fills the live copy. The client reconnects by itself from then on. Run must be called for Apply to work.
func Connect(ctx context.Context, c Config) (*NB, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	dbModel, err := dbModel()
	if err != nil {
		return nil, fmt.Errorf("northbound model: %w", err)
	}
	logger := logr.FromSlogHandler(c.Logger.With("db", "OVN_Northbound").Handler())
	opts := []client.Option{
		client.WithLogger(&logger),
		client.WithLeaderOnly(len(c.Endpoints) > 1),
		// Not WithInactivityCheck: its probe sends on a channel that a disconnect closes. Run probes instead.
		client.WithReconnect(connectTimeout, backoff.NewExponentialBackOff(
			backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))),
	}
	for _, e := range c.Endpoints {
		opts = append(opts, client.WithEndpoint(e))
	}
	db, err := client.NewOVSDBClient(dbModel, opts...)
	if err != nil {
		return nil, fmt.Errorf("northbound client: %w", err)
	}
	connectCtx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	if err := db.Connect(connectCtx); err != nil {
		return nil, fmt.Errorf("connect to the northbound database at %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	if _, err := db.Monitor(connectCtx, db.NewMonitor(monitoredTables()...)); err != nil {
		db.Close()
		return nil, fmt.Errorf("monitor the northbound database: %w", err)
	}
	return &NB{ovsdb: db, log: c.Logger, queue: make(chan *request, maxBatch), metrics: newMetrics(c.Registerer)}, nil
}

// Close ends the connection.
func (nb *NB) Close() { nb.ovsdb.Close() }

// Connected reports whether the database can be reached now.
func (nb *NB) Connected() bool { return nb.ovsdb.Connected() }

func dbModel() (model.ClientDBModel, error) {
	m, err := model.NewClientDBModel("OVN_Northbound", map[string]model.Model{
		nbdb.LogicalSwitchTable:            &nbdb.LogicalSwitch{},
		nbdb.LogicalSwitchPortTable:        &nbdb.LogicalSwitchPort{},
		nbdb.LogicalRouterTable:            &nbdb.LogicalRouter{},
		nbdb.LogicalRouterPortTable:        &nbdb.LogicalRouterPort{},
		nbdb.LogicalRouterPolicyTable:      &nbdb.LogicalRouterPolicy{},
		nbdb.LogicalRouterStaticRouteTable: &nbdb.LogicalRouterStaticRoute{},
		nbdb.QoSTable:                      &nbdb.QoS{},
	})
	if err != nil {
		return m, err
	}
	byName := []model.ClientIndex{{Columns: []model.ColumnKey{{Column: "name"}}}}
	byPod := []model.ClientIndex{{Columns: []model.ColumnKey{
		{Column: "external_ids", Key: ident.KeyNamespace}, {Column: "external_ids", Key: ident.KeyName},
	}}}
	byOwner := []model.ClientIndex{{Columns: []model.ColumnKey{
		{Column: "external_ids", Key: ident.OwnerKey}, {Column: "external_ids", Key: ident.KeyName},
	}}}
	m.SetIndexes(map[string][]model.ClientIndex{
		nbdb.LogicalSwitchTable: byName, nbdb.LogicalRouterTable: byName, nbdb.QoSTable: byPod, nbdb.LogicalRouterPolicyTable: byOwner,
	})
	return m, nil
}

func monitoredTables() []client.MonitorOption {
	// Not a switch's ports: nothing here reads them, and the copy of a switch with thousands would be made anew with every port that is added.
	ls := &nbdb.LogicalSwitch{}
	return []client.MonitorOption{
		client.WithTable(ls, &ls.Name, &ls.OtherConfig, &ls.ExternalIDs),
		client.WithTable(&nbdb.LogicalSwitchPort{}),
		client.WithTable(&nbdb.LogicalRouter{}),
		client.WithTable(&nbdb.LogicalRouterPort{}),
		client.WithTable(&nbdb.LogicalRouterPolicy{}),
		client.WithTable(&nbdb.LogicalRouterStaticRoute{}),
		client.WithTable(&nbdb.QoS{}),
	}
}

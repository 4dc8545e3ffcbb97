package ovn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// Deadlines of a connection.
const (
	connectTimeout  = 5 * time.Second
	firstTimeout    = time.Minute // databases that are pods start with everything else
	firstPause      = 500 * time.Millisecond
	copyTimeout     = time.Minute // with tens of thousands of rows, on a machine that has other things to do
	transactTimeout = 15 * time.Second
	// probeInterval is between two questions to a server, probeTimeout for the answer: one that has gone without a word is left after both at most.
	probeInterval = 2 * time.Second
	probeTimeout  = 5 * time.Second
	// turnInterval is for how long a server is tried first when none can be reached.
	turnInterval = 5 * time.Second
)

// Config says how to reach a database.
type Config struct {
	// Endpoints in ovsdb(7) form: ssl:HOST:PORT, tcp:HOST:PORT or unix:PATH. With several, the client finds the raft leader.
	Endpoints []string
	// TLS are the certificates for endpoints that are reached by it, and nil for others.
	TLS *pki.Files
	// Registerer receives the metrics of what is written. Required for the northbound database.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

// validate reports every error in c; database is its name for people.
func (c Config) validate(database string) error {
	var errs []error
	if len(c.Endpoints) == 0 {
		errs = append(errs, fmt.Errorf("no %s endpoint given: want %s", database, endpointForm))
	}
	if err := CheckEndpoints(c.Endpoints, c.TLS, "Config.TLS"); err != nil {
		errs = append(errs, fmt.Errorf("%s endpoint: %w", database, err))
	}
	return errors.Join(errs...)
}

// NB is a client of the northbound database with a live copy of the tables that Godwit uses. It is safe for concurrent use.
type NB struct {
	connection
	queue   chan *request
	urgent  chan *request
	metrics *metrics

	// The rest belongs to the commit loop.

	// named counts named UUIDs, transaction transactions, one that is tried again included.
	named, transaction int
	// created are the ports that the transaction makes.
	created map[ident.PortName]*created
}

// Connect reaches the database and fills the live copy. The client reconnects by itself from then on. Run must be called for Apply to work.
func Connect(ctx context.Context, c Config) (*NB, error) {
	dbModel, err := nbModel()
	if err != nil {
		return nil, fmt.Errorf("northbound model: %w", err)
	}
	db, err := dial(ctx, "northbound", dbModel, c)
	if err != nil {
		return nil, err
	}
	if err := monitor(ctx, "northbound", db, nbTables()...); err != nil {
		return nil, err
	}
	return &NB{
		connection: newConnection(db, c, "northbound", nbdb.LogicalSwitchPortTable), queue: make(chan *request, maxBatch), urgent: make(chan *request, maxBatch), metrics: newMetrics(c.Registerer),
	}, nil
}

// dial makes a client of a database, which has no copy of anything yet.
func dial(ctx context.Context, database string, dbModel model.ClientDBModel, c Config) (client.Client, error) {
	if err := c.validate(database); err != nil {
		return nil, err
	}
	logger := logr.FromSlogHandler(c.Logger.With("db", database).Handler())
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
	opts, err := c.certified(opts)
	if err != nil {
		return nil, fmt.Errorf("connect to the %s database by TLS: %w", database, err)
	}
	db, err := client.NewOVSDBClient(dbModel, opts...)
	if err != nil {
		return nil, fmt.Errorf("%s client: %w", database, err)
	}
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	for order := c.Endpoints; ; order = turned(order) {
		prefer(db, order)
		err := connectOnce(ctx, db)
		if err == nil {
			return db, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the %s database at %s: %w", database, strings.Join(c.Endpoints, ","), err)
		case <-time.After(firstPause):
		}
	}
}

func connectOnce(ctx context.Context, db client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return db.Connect(ctx)
}

// turned has the first of the endpoints last.
func turned(endpoints []string) []string {
	return append(slices.Clone(endpoints[1:]), endpoints[0])
}

// prefer lets the client try endpoints in this order, and ends its connection with another than the first. It tries all of them within one deadline: a server that says nothing, as behind a firewall or on a
// node that is cut off, takes all of that when it comes first. The client keeps its first endpoint first as long as that is in the list, hence the two steps.
func prefer(db client.Client, order []string) {
	db.UpdateEndpoints(order[:1])
	db.UpdateEndpoints(order)
}

// monitor fills the copy and keeps it live; it closes db when it fails.
func monitor(ctx context.Context, database string, db client.Client, tables ...client.MonitorOption) error {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	if _, err := db.Monitor(ctx, db.NewMonitor(tables...)); err != nil {
		db.Close()
		return fmt.Errorf("read the %s database within %s: %w", database, copyTimeout, err)
	}
	return nil
}

// connection is a client's connection to one database.
type connection struct {
	ovsdb client.Client
	log   *slog.Logger
	// database is its name for people, table one that is monitored.
	database, table string
	renewed         chan struct{}
	// endpoints are in the order in which they were last to be tried; probe alone uses them.
	endpoints []string
	asking    *asking
}

func newConnection(ovsdb client.Client, c Config, database, table string) connection {
	return connection{ovsdb: ovsdb, log: c.Logger, database: database, table: table, renewed: make(chan struct{}, 1), endpoints: c.Endpoints, asking: &asking{}}
}

// Close ends the connection.
func (c *connection) Close() { c.ovsdb.Close() }

// Connected reports whether the database can be reached now. It answers within askPatience, whatever the database does.
func (c *connection) Connected() bool { return c.asking.connected(c.ovsdb.Connected) }

// Renewed receives a value after the live copy was made anew: the connection was lost, and the server could not say what had changed since. What has gone or
// changed meanwhile was told to no watcher. It is noticed within seconds, by Run. There is one channel, for one receiver.
func (c *connection) Renewed() <-chan struct{} { return c.renewed }

// probe finds out that a server has gone without a word, and lets the client connect again, and that the copy was made anew, until ctx ends.
func (c *connection) probe(ctx context.Context) error {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	known := c.copy()
	var turn time.Time // when others are to be tried first; zero while there is a connection
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !c.ovsdb.Connected() {
			if time.Now().Before(turn) {
				continue
			}
			turn = time.Now().Add(turnInterval)
			c.endpoints = turned(c.endpoints)
			prefer(c.ovsdb, c.endpoints)
			continue
		}
		turn = time.Time{}
		now := c.copy()
		echo, cancel := context.WithTimeout(ctx, probeTimeout)
		err := c.ovsdb.Echo(echo)
		cancel()
		switch {
		case ctx.Err() != nil:
		case err != nil:
			silent := c.ovsdb.CurrentEndpoint()
			c.log.Warn("the database does not answer, connecting again", "db", c.database, "endpoint", silent, "error", err)
			c.avoid(silent)
			turn = time.Now().Add(turnInterval)
		case now != known: // and it is whole: the client answers nothing while it fills it
			known = now
			select {
			case c.renewed <- struct{}{}:
			default:
			}
		}
	}
}

// avoid ends the connection with a server, and tries the others first.
func (c *connection) avoid(silent string) {
	if len(c.endpoints) == 1 {
		c.ovsdb.Disconnect()
		return
	}
	i := max(0, slices.Index(c.endpoints, silent))
	c.endpoints = slices.Concat(c.endpoints[i+1:], c.endpoints[:i+1])
	prefer(c.ovsdb, c.endpoints)
}

// copy is the live copy of one table, which the client replaces, with all others, when it cannot go on with it.
func (c *connection) copy() *cache.RowCache { return c.ovsdb.Cache().Table(c.table) }

func nbModel() (model.ClientDBModel, error) {
	m, err := model.NewClientDBModel("OVN_Northbound", map[string]model.Model{
		nbdb.LogicalSwitchTable:            &nbdb.LogicalSwitch{},
		nbdb.LogicalSwitchPortTable:        &nbdb.LogicalSwitchPort{},
		nbdb.LogicalRouterTable:            &nbdb.LogicalRouter{},
		nbdb.LogicalRouterPortTable:        &nbdb.LogicalRouterPort{},
		nbdb.LogicalRouterPolicyTable:      &nbdb.LogicalRouterPolicy{},
		nbdb.LogicalRouterStaticRouteTable: &nbdb.LogicalRouterStaticRoute{},
		nbdb.QoSTable:                      &nbdb.QoS{},
		nbdb.DHCPOptionsTable:              &nbdb.DHCPOptions{},
		// Written by PolicyWriter, which reads them when it must and has no live copy: of a port group or an address set with thousands of members it would be made
		// anew with every member. Of address sets there is one of the names, for the writers of other sets.
		nbdb.PortGroupTable:  &nbdb.PortGroup{},
		nbdb.AddressSetTable: &nbdb.AddressSet{},
		nbdb.ACLTable:        &nbdb.ACL{},
		nbdb.MeterTable:      &nbdb.Meter{},
		nbdb.MeterBandTable:  &nbdb.MeterBand{},
		// Written by ServiceWriter, likewise.
		nbdb.LoadBalancerTable:       &nbdb.LoadBalancer{},
		nbdb.LoadBalancerGroupTable:  &nbdb.LoadBalancerGroup{},
		nbdb.ChassisTemplateVarTable: &nbdb.ChassisTemplateVar{},
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
		nbdb.LogicalSwitchTable: byName, nbdb.LoadBalancerGroupTable: byName, nbdb.LogicalRouterTable: byName, nbdb.QoSTable: byPod, nbdb.LogicalSwitchPortTable: byPod, nbdb.LogicalRouterPolicyTable: byOwner,
	})
	return m, nil
}

func nbTables() []client.MonitorOption {
	// Not a switch's ports: nothing here reads them, and the copy of a switch with thousands would be made anew with every port that is added.
	ls, set := &nbdb.LogicalSwitch{}, &nbdb.AddressSet{}
	group := &nbdb.LoadBalancerGroup{} // nor a group's load balancers
	return []client.MonitorOption{
		client.WithTable(ls, &ls.Name, &ls.OtherConfig, &ls.LoadBalancerGroup, &ls.ExternalIDs),
		client.WithTable(group, &group.Name),
		client.WithTable(&nbdb.LogicalSwitchPort{}),
		client.WithTable(&nbdb.LogicalRouter{}),
		client.WithTable(&nbdb.LogicalRouterPort{}),
		client.WithTable(&nbdb.LogicalRouterPolicy{}),
		client.WithTable(&nbdb.LogicalRouterStaticRoute{}),
		client.WithTable(&nbdb.QoS{}),
		client.WithTable(&nbdb.DHCPOptions{}),
		client.WithTable(set, &set.Name, &set.ExternalIDs),
		client.WithTable(&nbdb.Meter{}),
		client.WithTable(&nbdb.MeterBand{}),
	}
}

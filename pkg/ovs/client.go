// Package ovs is the local Open vSwitch: its Open_vSwitch database, by OVSDB; one look at the integration bridge's flows, by OpenFlow; and what ovs-vswitchd is told or asked by its control socket.
//
// Columns and map keys that it writes; nothing else changes them:
//
//	Open_vSwitch  external_ids: the keys of Chassis; bridges: the integration bridge
//	SSL           private_key, certificate, ca_cert, bootstrap_ca_cert of the row that Open_vSwitch names, where the node has certificates
//	Datapath      capabilities:ct_zero_snat of the userspace datapath, where an ovs-vswitchd of known versions has said true
//	Bridge        the integration bridge's fail_mode, datapath_type, ports
//	Port          rows of our own ports: name, interfaces
//	Interface     rows of our own ports: name, type, mac, mtu_request, external_ids (iface-id, iface-id-ver, attached-mac, godwit.dev/*)
package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// DefaultEndpoint is where Open vSwitch serves its database.
const DefaultEndpoint = "unix:/run/openvswitch/db.sock"

// Timeouts of the connection.
const (
	connectTimeout = 4 * time.Second
	// transactTimeout is the longest that one transaction may take, a reconnect included. A database on the same host answers in milliseconds.
	transactTimeout = 10 * time.Second
	pingTimeout     = 2 * time.Second
	maxBackoff      = 5 * time.Second
)

// Config is how to reach the database.
type Config struct {
	// Endpoint is the database's address, such as DefaultEndpoint.
	Endpoint string
	Logger   *slog.Logger
}

// Client is a connection to the local Open_vSwitch database. It reconnects by itself. Safe for concurrent use.
type Client struct {
	endpoint string
	ovsdb    client.Client
	log      *slog.Logger
	watch    watchers

	// ports is held from reading the rows of our ports to writing them: two attachments of one pod must not both find the other's absent.
	ports sync.Mutex
}

// Connect returns when the database's contents are here. It waits for a database that is not there yet, until ctx ends.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	db, err := dbModel()
	if err != nil {
		return nil, err
	}
	log := logr.FromSlogHandler(cfg.Logger.Handler()).WithName("libovsdb")
	// No WithInactivityCheck: with it, a transaction that ends while the connection breaks may send on a channel that libovsdb has closed, and the
	// process panics. A unix socket's peer that dies is noticed without.
	raw, err := client.NewOVSDBClient(db, client.WithEndpoint(cfg.Endpoint), client.WithLogger(&log),
		client.WithReconnect(connectTimeout, reconnectBackoff()))
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Endpoint, err)
	}
	c := &Client{endpoint: cfg.Endpoint, ovsdb: raw, log: cfg.Logger}
	connect := func() error {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		return raw.Connect(ctx)
	}
	failed := func(err error, next time.Duration) {
		cfg.Logger.Warn("Open vSwitch database is not reachable: is ovsdb-server running, and its directory mounted?",
			"endpoint", cfg.Endpoint, "error", err, "retry_in", next.Round(time.Millisecond))
	}
	if err := backoff.RetryNotify(connect, backoff.WithContext(reconnectBackoff(), ctx), failed); err != nil {
		return nil, fmt.Errorf("connect to Open vSwitch database %s: %w", cfg.Endpoint, err)
	}
	raw.Cache().AddEventHandler(&c.watch)
	if err := c.monitor(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. Rows stay as they are.
func (c *Client) Close() { c.ovsdb.Close() }

// Ping returns an error that wraps ErrUnreachable unless the database answers.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := c.ovsdb.Echo(ctx); err != nil {
		return fmt.Errorf("%w: %s: %w: is ovsdb-server running?", ErrUnreachable, c.endpoint, err)
	}
	return nil
}

// reconnectBackoff never gives up: libovsdb panics when its backoff does.
func reconnectBackoff() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 50*time.Millisecond, maxBackoff, 0
	return b
}

// dbModel has only the tables that are used, so that an older or newer schema elsewhere does not matter.
func dbModel() (model.ClientDBModel, error) {
	db, err := model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		vswitchdb.OpenvSwitchTable: &vswitchdb.OpenvSwitch{},
		vswitchdb.DatapathTable:    &vswitchdb.Datapath{},
		vswitchdb.BridgeTable:      &vswitchdb.Bridge{},
		vswitchdb.PortTable:        &vswitchdb.Port{},
		vswitchdb.InterfaceTable:   &vswitchdb.Interface{},
		vswitchdb.SSLTable:         &vswitchdb.SSL{},
	})
	if err != nil {
		return model.ClientDBModel{}, fmt.Errorf("make model of the Open_vSwitch database: %w", err)
	}
	return db, nil
}

// monitor subscribes to the columns that are read. The statistics, which change every five seconds, are not among them, nor are the bridge's external_ids, where
// ovn-controller keeps the connection tracking zones of ports: they would wake the node's loop for every pod.
func (c *Client) monitor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	root, br, port, iface, datapath := &vswitchdb.OpenvSwitch{}, &vswitchdb.Bridge{}, &vswitchdb.Port{}, &vswitchdb.Interface{}, &vswitchdb.Datapath{}
	_, err := c.ovsdb.Monitor(ctx, c.ovsdb.NewMonitor(
		client.WithTable(root, &root.Bridges, &root.ExternalIDs, &root.DatapathTypes, &root.Datapaths, &root.SSL),
		client.WithTable(&vswitchdb.SSL{}),
		client.WithTable(datapath, &datapath.Capabilities),
		client.WithTable(br, &br.Name, &br.Ports, &br.FailMode, &br.DatapathType),
		client.WithTable(port, &port.Name, &port.Interfaces),
		client.WithTable(iface, &iface.Name, &iface.Type, &iface.MAC, &iface.MTURequest, &iface.ExternalIDs, &iface.Ofport, &iface.Error),
	))
	if err != nil {
		return fmt.Errorf("monitor Open vSwitch database %s: %w", c.endpoint, err)
	}
	return nil
}

// transact runs one transaction and returns an error unless every operation succeeded.
func (c *Client) transact(ctx context.Context, ops []ovsdb.Operation) error {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	results, err := c.ovsdb.Transact(ctx, ops...)
	if err != nil {
		var broken net.Error // a connection that breaks under the transaction
		if errors.Is(err, client.ErrNotConnected) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &broken) {
			return fmt.Errorf("%w: %s: %w: is ovsdb-server running?", ErrUnreachable, c.endpoint, err)
		}
		return fmt.Errorf("transact with %s: %w", c.endpoint, err)
	}
	if _, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		return fmt.Errorf("transaction refused by %s: %w", c.endpoint, err)
	}
	return nil
}

// create makes the operations that insert the rows; libovsdb's Create takes those of one table only.
func (c *Client) create(rows ...model.Model) ([]ovsdb.Operation, error) {
	var ops []ovsdb.Operation
	for _, row := range rows {
		op, err := c.ovsdb.Create(row)
		if err != nil {
			return nil, fmt.Errorf("make insert of %T: %w", row, err)
		}
		ops = append(ops, op...)
	}
	return ops, nil
}

// integrationBridge reads the row; nil when there is none.
func (c *Client) integrationBridge(ctx context.Context) (*vswitchdb.Bridge, error) {
	var rows []vswitchdb.Bridge
	err := c.ovsdb.WhereCache(func(b *vswitchdb.Bridge) bool { return b.Name == ident.IntegrationBridge }).List(ctx, &rows)
	if err != nil {
		return nil, fmt.Errorf("read Bridge %s: %w", ident.IntegrationBridge, err)
	}
	if len(rows) == 0 {
		return nil, nil //nolint:nilnil // documented
	}
	return &rows[0], nil
}

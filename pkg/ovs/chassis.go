package ovs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// Datapath types of a bridge.
const (
	DatapathSystem = "system"
	DatapathNetdev = "netdev"
)

const keyEncapIP = "ovn-encap-ip"

// Chassis is what ovn-controller reads from Open_vSwitch.external_ids.
type Chassis struct {
	// Name is system-id: the SB Chassis's name.
	Name ident.ChassisName
	// Remote is the southbound database, a comma-separated list of tcp:IP:PORT or ssl:IP:PORT.
	Remote string
	// TLS are the node's certificates, if ovn-controller needs some; nil leaves the table SSL alone.
	TLS *TLSFiles
	// EncapIP is the tunnels' local end.
	EncapIP string
	// Datapath is DatapathSystem or DatapathNetdev.
	Datapath string
}

func (ch Chassis) externalIDs() map[string]string {
	return map[string]string{
		"system-id":                string(ch.Name),
		"hostname":                 string(ch.Name),
		"ovn-remote":               ch.Remote,
		"ovn-encap-type":           "geneve",
		keyEncapIP:                 ch.EncapIP,
		"ovn-bridge":               ident.IntegrationBridge,
		"ovn-bridge-datapath-type": ch.Datapath,
		"ovn-monitor-all":          "true",
	}
}

// EncapIP is where the node's tunnels end, as EnsureChassis wrote it; the zero value if there is none, or somebody else has written several.
func (c *Client) EncapIP(ctx context.Context) (netip.Addr, error) {
	root, err := c.root(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	ip, err := netip.ParseAddr(root.ExternalIDs[keyEncapIP])
	if err != nil {
		return netip.Addr{}, nil //nolint:nilerr // documented
	}
	return ip, nil
}

// EnsureChassis writes the keys that differ, and the table SSL if the chassis has certificates, and reports which did. Other keys of the column are other people's.
func (c *Client) EnsureChassis(ctx context.Context, ch Chassis) (changed []string, err error) {
	root, err := c.root(ctx)
	if err != nil {
		return nil, err
	}
	write := map[string]string{}
	for k, v := range ch.externalIDs() {
		if root.ExternalIDs[k] != v {
			write[k] = v
		}
	}
	var ops []ovsdb.Operation
	if ch.TLS != nil {
		if ops, err = c.sslOps(ctx, root, *ch.TLS); err != nil {
			return nil, fmt.Errorf("set Open_vSwitch ssl: %w", err)
		}
	}
	if len(write) == 0 && len(ops) == 0 {
		return nil, nil
	}
	changed = slices.Sorted(maps.Keys(write))
	if len(ops) != 0 {
		changed = append(changed, "ssl")
	}
	if len(write) != 0 {
		set, err := c.setKeys(root, &root.ExternalIDs, write)
		if err != nil {
			return nil, fmt.Errorf("set Open_vSwitch external_ids %v: %w", changed, err)
		}
		ops = append(ops, set...)
	}
	if err := c.transact(ctx, ops); err != nil { // one transaction: ovn-controller never has a remote without its certificate
		return nil, fmt.Errorf("set Open_vSwitch external_ids %v: %w", changed, err)
	}
	return changed, nil
}

// setKeys makes the operations that set keys of a map column and leave the others: OVSDB's insert does not replace, so they are deleted first.
func (c *Client) setKeys(row model.Model, column *map[string]string, kv map[string]string) ([]ovsdb.Operation, error) {
	return c.ovsdb.Where(row).Mutate(row,
		model.Mutation{Field: column, Mutator: ovsdb.MutateOperationDelete, Value: slices.Sorted(maps.Keys(kv))},
		model.Mutation{Field: column, Mutator: ovsdb.MutateOperationInsert, Value: kv},
	)
}

func (c *Client) root(ctx context.Context) (*vswitchdb.OpenvSwitch, error) {
	var rows []vswitchdb.OpenvSwitch
	if err := c.ovsdb.List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read table Open_vSwitch: %w", err)
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("database %s has %d Open_vSwitch rows, want 1: has Open vSwitch been started (ovs-vsctl init)?", c.endpoint, len(rows))
	}
	return &rows[0], nil
}

// EnsureBridge makes the integration bridge, or gives the existing one the fail mode and datapath type that OVN needs.
func (c *Client) EnsureBridge(ctx context.Context, datapath string) error {
	br, err := c.integrationBridge(ctx)
	if err != nil {
		return err
	}
	if br == nil {
		return c.createBridge(ctx, datapath)
	}
	if br.DatapathType == datapath && br.FailMode != nil && *br.FailMode == vswitchdb.BridgeFailModeSecure {
		return nil
	}
	br.DatapathType, br.FailMode = datapath, ptr(vswitchdb.BridgeFailModeSecure)
	ops, err := c.ovsdb.Where(br).Update(br, &br.DatapathType, &br.FailMode)
	if err == nil {
		err = c.transact(ctx, ops)
	}
	if err != nil {
		return fmt.Errorf("update bridge %s: %w", ident.IntegrationBridge, err)
	}
	return nil
}

func (c *Client) createBridge(ctx context.Context, datapath string) error {
	root, err := c.root(ctx)
	if err != nil {
		return err
	}
	// Fail mode secure: a bridge without its controller must not become a learning switch that joins all pods.
	rows := []model.Model{
		&vswitchdb.Interface{UUID: "br_iface", Name: ident.IntegrationBridge, Type: typeInternal},
		&vswitchdb.Port{UUID: "br_port", Name: ident.IntegrationBridge, Interfaces: []string{"br_iface"}},
		&vswitchdb.Bridge{
			UUID: "br", Name: ident.IntegrationBridge, Ports: []string{"br_port"}, DatapathType: datapath, FailMode: ptr(vswitchdb.BridgeFailModeSecure),
		},
	}
	create, err := c.create(rows...)
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", ident.IntegrationBridge, err)
	}
	link, err := c.ovsdb.Where(root).Mutate(root,
		model.Mutation{Field: &root.Bridges, Mutator: ovsdb.MutateOperationInsert, Value: []string{"br"}})
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", ident.IntegrationBridge, err)
	}
	if err := c.transact(ctx, append(create, link...)); err != nil {
		return fmt.Errorf("create bridge %s: %w", ident.IntegrationBridge, err)
	}
	return nil
}

// SupportsDatapath returns an error unless ovs-vswitchd offers the datapath type. Before ovs-vswitchd has ever run it has said nothing.
func (c *Client) SupportsDatapath(ctx context.Context, datapath string) error {
	root, err := c.root(ctx)
	if err != nil {
		return err
	}
	if len(root.DatapathTypes) == 0 {
		return errors.New("ovs-vswitchd has not written Open_vSwitch.datapath_types yet: is it running?")
	}
	if !slices.Contains(root.DatapathTypes, datapath) {
		return fmt.Errorf("ovs-vswitchd offers the datapath types %v, not %q: change --datapath", root.DatapathTypes, datapath)
	}
	return nil
}

func ptr[T any](v T) *T { return &v }

package ovs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// Keys of Interface.external_ids. The first four are OVN's.
const (
	keyIfaceID      = ident.KeyIfaceID
	keyIfaceIDVer   = ident.KeyIfaceIDVer
	keyAttachedMAC  = "attached-mac"
	keyOVNInstalled = "ovn-installed"

	keyContainer = "godwit.dev/container"
	keyIfName    = "godwit.dev/ifname"
	keyNetns     = "godwit.dev/netns"
	keyPod       = "godwit.dev/pod"
	keyConf      = "godwit.dev/conf"
	// keyWithdrawn has the iface-id while it is withdrawn.
	keyWithdrawn = "godwit.dev/withdrawn"
)

// typeInternal is the Interface type of ports whose link ovs-vswitchd makes.
const typeInternal = "internal"

// typeGeneve is the Interface type of the tunnels between chassis.
const typeGeneve = "geneve"

// Owner says which container's interface a port is. The zero value is a port of the node itself.
type Owner struct {
	// Container and IfName are the CNI attachment.
	Container, IfName string
	// Netns is the path of the container's network namespace.
	Netns string
	// Pod is "namespace/name".
	Pod string
	// Conf is the name of the CNI network configuration that attached it.
	Conf string
}

// Port is a port of the integration bridge that is Godwit's.
type Port struct {
	// Name is the link's name.
	Name string
	// Internal ports are made by ovs-vswitchd; others exist already.
	Internal bool
	// ID is the OVN port; UID the version of it (iface-id-ver), empty if it has none.
	ID  ident.PortName
	UID string
	// MAC is the address of the OVN port. An internal port's link gets it.
	MAC string
	// MTU in bytes of an internal port's link; ignored for others.
	MTU   int
	Owner Owner
}

// PortStatus is a Port and what ovs-vswitchd and ovn-controller say of it.
type PortStatus struct {
	Port
	// Withdrawn: OVN is not told of the port for the time being.
	Withdrawn bool
	// Installed: ovn-controller has bound the port here and its flows are in place.
	Installed bool
	// Ofport is the OpenFlow port number: 0 before ovs-vswitchd has seen the port, -1 when it could not use it.
	Ofport int
	// Error is why ovs-vswitchd could not use it.
	Error string
}

func (p Port) externalIDs() map[string]string {
	ids := map[string]string{keyIfaceID: string(p.ID), keyAttachedMAC: p.MAC}
	for k, v := range map[string]string{
		keyIfaceIDVer: p.UID, keyContainer: p.Owner.Container, keyIfName: p.Owner.IfName, keyNetns: p.Owner.Netns, keyPod: p.Owner.Pod,
		keyConf: p.Owner.Conf,
	} {
		if v != "" {
			ids[k] = v
		}
	}
	if p.Owner == (Owner{}) {
		ids[ident.OwnerKey] = ident.OwnerNode
	}
	return ids
}

func status(i *vswitchdb.Interface) PortStatus {
	ids := i.ExternalIDs
	s := PortStatus{
		Port: Port{
			Name: i.Name, Internal: i.Type == typeInternal, ID: ident.PortName(ids[keyIfaceID]), UID: ids[keyIfaceIDVer], MAC: ids[keyAttachedMAC],
			Owner: Owner{Container: ids[keyContainer], IfName: ids[keyIfName], Netns: ids[keyNetns], Pod: ids[keyPod], Conf: ids[keyConf]},
		},
		Installed: ids[keyOVNInstalled] == "true",
	}
	if s.ID == "" && ids[keyWithdrawn] != "" {
		s.ID, s.Withdrawn, s.Installed = ident.PortName(ids[keyWithdrawn]), true, false
	}
	if i.MTURequest != nil {
		s.MTU = *i.MTURequest
	}
	if i.Ofport != nil {
		s.Ofport = *i.Ofport
	}
	if i.Error != nil {
		s.Error = *i.Error
	}
	return s
}

// ours reports whether the row was written by this package.
func ours(i *vswitchdb.Interface) bool {
	return i.ExternalIDs[keyContainer] != "" || i.ExternalIDs[ident.OwnerKey] != ""
}

// Port reads one of our ports. The error wraps ErrNoPort if there is none of that name.
func (c *Client) Port(ctx context.Context, name string) (PortStatus, error) {
	row := &vswitchdb.Interface{Name: name}
	err := c.ovsdb.Get(ctx, row)
	if errors.Is(err, client.ErrNotFound) || err == nil && !ours(row) {
		return PortStatus{}, fmt.Errorf("%w: %s on %s", ErrNoPort, name, ident.IntegrationBridge)
	}
	if err != nil {
		return PortStatus{}, fmt.Errorf("read Interface %s: %w", name, err)
	}
	return status(row), nil
}

// PodPorts reads all ports of containers, sorted by name.
func (c *Client) PodPorts(ctx context.Context) ([]PortStatus, error) {
	rows, err := c.interfaces(ctx, func(i *vswitchdb.Interface) bool { return i.ExternalIDs[keyContainer] != "" })
	if err != nil {
		return nil, err
	}
	out := make([]PortStatus, 0, len(rows))
	for i := range rows {
		out = append(out, status(&rows[i]))
	}
	slices.SortFunc(out, func(a, b PortStatus) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Tunnels counts the tunnels that ovn-controller has made to other nodes, and those among them that ovs-vswitchd could not make.
func (c *Client) Tunnels(ctx context.Context) (all, failed int, err error) {
	rows, err := c.interfaces(ctx, func(i *vswitchdb.Interface) bool { return i.Type == typeGeneve })
	for i := range rows {
		if rows[i].Error != nil && *rows[i].Error != "" {
			failed++
		}
	}
	return len(rows), failed, err
}

func (c *Client) interfaces(ctx context.Context, match func(*vswitchdb.Interface) bool) ([]vswitchdb.Interface, error) {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	var rows []vswitchdb.Interface
	if err := c.ovsdb.WhereCache(match).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read table Interface: %w", err)
	}
	return rows, nil
}

// EnsurePort adds the port to the integration bridge in one transaction. A port of ours with the same name or the same ID that differs is
// replaced in it: OVN lets the newest Interface have a port only when no other claims it. An equal port is left alone.
func (c *Client) EnsurePort(ctx context.Context, p Port) error {
	c.ports.Lock()
	defer c.ports.Unlock()
	rows, err := c.interfaces(ctx, func(i *vswitchdb.Interface) bool {
		return i.Name == p.Name || i.ExternalIDs[keyIfaceID] == string(p.ID) && ours(i)
	})
	if err != nil {
		return err
	}
	if len(rows) == 1 && equal(&rows[0], p) {
		return nil
	}
	if len(rows) == 1 && p.Internal && rows[0].Type == typeInternal && rows[0].Name == p.Name && ours(&rows[0]) {
		return c.updatePort(ctx, &rows[0], p)
	}
	br, err := c.integrationBridge(ctx)
	if err != nil {
		return err
	}
	if br == nil {
		return fmt.Errorf("add port %s: there is no bridge %s: somebody removed it, and the agent makes it again; try again", p.Name, ident.IntegrationBridge)
	}
	ops, err := c.removeOps(ctx, br, rows)
	if err != nil {
		return fmt.Errorf("add port %s: %w", p.Name, err)
	}
	add, err := c.addOps(br, p)
	if err != nil {
		return fmt.Errorf("add port %s: %w", p.Name, err)
	}
	if err := c.transact(ctx, append(ops, add...)); err != nil {
		return fmt.Errorf("add port %s for %s to %s: %w", p.Name, p.ID, ident.IntegrationBridge, err)
	}
	return nil
}

// updatePort changes an internal port in place: replacing it would take its link, and with it the node's traffic, away for a moment.
func (c *Client) updatePort(ctx context.Context, row *vswitchdb.Interface, p Port) error {
	keys, err := c.setKeys(row, &row.ExternalIDs, p.externalIDs())
	if err != nil {
		return fmt.Errorf("update port %s: %w", p.Name, err)
	}
	row.MAC, row.MTURequest = &p.MAC, &p.MTU
	columns, err := c.ovsdb.Where(row).Update(row, &row.MAC, &row.MTURequest)
	if err != nil {
		return fmt.Errorf("update port %s: %w", p.Name, err)
	}
	if err := c.transact(ctx, slices.Concat(keys, columns)); err != nil {
		return fmt.Errorf("update port %s on %s: %w", p.Name, ident.IntegrationBridge, err)
	}
	return nil
}

// equal compares what EnsurePort writes; keys that OVN writes are not ours to compare.
func equal(i *vswitchdb.Interface, p Port) bool {
	for k, v := range p.externalIDs() {
		if i.ExternalIDs[k] != v {
			return false
		}
	}
	if i.Name != p.Name || (i.Type == typeInternal) != p.Internal || i.ExternalIDs[keyIfaceIDVer] != p.UID {
		return false
	}
	return !p.Internal || i.MTURequest != nil && *i.MTURequest == p.MTU && i.MAC != nil && *i.MAC == p.MAC
}

func (c *Client) addOps(br *vswitchdb.Bridge, p Port) ([]ovsdb.Operation, error) {
	iface := &vswitchdb.Interface{UUID: "iface", Name: p.Name, ExternalIDs: p.externalIDs()}
	port := &vswitchdb.Port{UUID: "port", Name: p.Name, Interfaces: []string{"iface"}}
	if p.Internal {
		// In the database, so that the link that ovs-vswitchd makes after its restart has them from the start.
		iface.Type, iface.MAC, iface.MTURequest = typeInternal, &p.MAC, &p.MTU
	}
	create, err := c.create(iface, port)
	if err != nil {
		return nil, err
	}
	// Without the wait, a bridge that went away meanwhile would leave the mutation without a row, and the new rows without a reference.
	wait, err := c.ovsdb.Where(br).Wait(ovsdb.WaitConditionEqual, ptr(0), br, &br.Name)
	if err != nil {
		return nil, err
	}
	link, err := c.ovsdb.Where(br).Mutate(br, model.Mutation{Field: &br.Ports, Mutator: ovsdb.MutateOperationInsert, Value: []string{"port"}})
	if err != nil {
		return nil, err
	}
	return slices.Concat(wait, create, link), nil
}

// removeOps takes the interfaces' ports off the bridge. A port that is not ours is an error: it is in the way and not ours to remove.
func (c *Client) removeOps(ctx context.Context, br *vswitchdb.Bridge, ifaces []vswitchdb.Interface) ([]ovsdb.Operation, error) {
	var ops []ovsdb.Operation
	for i := range ifaces {
		iface := &ifaces[i]
		if !ours(iface) {
			return nil, fmt.Errorf("an interface %s that is not Godwit's exists (external_ids %v): remove it with ovs-vsctl del-port",
				iface.Name, slices.Sorted(maps.Keys(iface.ExternalIDs)))
		}
		var ports []vswitchdb.Port
		err := c.ovsdb.WhereCache(func(p *vswitchdb.Port) bool { return slices.Contains(p.Interfaces, iface.UUID) }).List(ctx, &ports)
		if err != nil {
			return nil, fmt.Errorf("read table Port: %w", err)
		}
		for j := range ports {
			unlink, err := c.ovsdb.Where(br).Mutate(br,
				model.Mutation{Field: &br.Ports, Mutator: ovsdb.MutateOperationDelete, Value: []string{ports[j].UUID}})
			if err != nil {
				return nil, err
			}
			// The database drops unreferenced rows by itself, but only at the end of a transaction: a new row of the same name would clash.
			del, err := c.ovsdb.Where(&ports[j]).Delete()
			if err != nil {
				return nil, err
			}
			delIface, err := c.ovsdb.Where(iface).Delete()
			if err != nil {
				return nil, err
			}
			ops = slices.Concat(ops, unlink, del, delIface)
		}
	}
	return ops, nil
}

// DeletePorts removes our ports of those names in one transaction. Removing the absent succeeds.
func (c *Client) DeletePorts(ctx context.Context, names ...string) error {
	c.ports.Lock()
	defer c.ports.Unlock()
	rows, err := c.interfaces(ctx, func(i *vswitchdb.Interface) bool { return slices.Contains(names, i.Name) && ours(i) })
	if err != nil || len(rows) == 0 {
		return err
	}
	br, err := c.integrationBridge(ctx)
	if err != nil || br == nil {
		return err
	}
	ops, err := c.removeOps(ctx, br, rows)
	if err != nil {
		return fmt.Errorf("remove ports %v: %w", names, err)
	}
	if err := c.transact(ctx, ops); err != nil {
		return fmt.Errorf("remove ports %v from %s: %w", names, ident.IntegrationBridge, err)
	}
	return nil
}

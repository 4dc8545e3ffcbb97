package ovs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// Keys of the external_ids of the underlay bridge's own Interface. The database keeps what the bridge has to give back to the node: its link goes with every
// ovs-vswitchd, and its addresses with the link.
const (
	keyUnderlay  = "godwit.dev/underlay"
	keyAddresses = "godwit.dev/addresses"
	keyRoutes    = "godwit.dev/routes"
	// keyMetricRoutes has those with a metric, which earlier agents cannot read.
	keyMetricRoutes = "godwit.dev/metric-routes"
)

// Underlay is the bridge that takes a link of the node into the userspace datapath, which tunnels over a bridge's own link only.
type Underlay struct {
	// Bridge is its name, and that of its own link; Link is the node's; MAC is Link's, which the bridge is given when it is made; Underlay does not read it.
	Bridge, Link, MAC string
	// Addresses and Routes were Link's. A route is DESTINATION>GATEWAY or DESTINATION>GATEWAY>METRIC.
	Addresses []netip.Prefix
	Routes    []string
}

// HasInterface says whether Open vSwitch has an interface of that name.
func (c *Client) HasInterface(ctx context.Context, name string) (bool, error) {
	row, err := c.interfaceNamed(ctx, name)
	return row != nil, err
}

func (c *Client) interfaceNamed(ctx context.Context, name string) (*vswitchdb.Interface, error) {
	var rows []vswitchdb.Interface
	if err := c.ovsdb.WhereCache(func(i *vswitchdb.Interface) bool { return i.Name == name }).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read Interface %s: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	return &rows[0], nil
}

// Underlay reads what CreateUnderlay wrote; found is false where there is no such bridge, or somebody else has made it.
func (c *Client) Underlay(ctx context.Context, bridge string) (u Underlay, found bool, err error) {
	row, err := c.interfaceNamed(ctx, bridge)
	if err != nil || row == nil {
		return u, false, err
	}
	return ParseUnderlay(bridge, row.ExternalIDs)
}

// ParseUnderlay reads the external_ids of an Interface; found is false if they are not of a bridge that CreateUnderlay made.
func ParseUnderlay(name string, ids map[string]string) (u Underlay, found bool, err error) {
	if ids[keyUnderlay] == "" {
		return u, false, nil
	}
	u = Underlay{Bridge: name, Link: ids[keyUnderlay], Routes: append(strings.Fields(ids[keyRoutes]), strings.Fields(ids[keyMetricRoutes])...)}
	for a := range strings.FieldsSeq(ids[keyAddresses]) {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return u, true, fmt.Errorf("read Interface %s, external_ids:%s: %w: correct it", name, keyAddresses, err)
		}
		u.Addresses = append(u.Addresses, p)
	}
	return u, true, nil
}

// holdings are the keys that have the addresses and routes.
func (u Underlay) holdings() map[string]string {
	var addresses, routes, metric []string
	for _, a := range u.Addresses {
		addresses = append(addresses, a.String())
	}
	for _, r := range u.Routes {
		if strings.Count(r, ">") > 1 {
			metric = append(metric, r)
		} else {
			routes = append(routes, r)
		}
	}
	return map[string]string{keyAddresses: strings.Join(addresses, " "), keyRoutes: strings.Join(routes, " "), keyMetricRoutes: strings.Join(metric, " ")}
}

// CreateUnderlay makes the bridge with the node's link in it, all at once.
func (c *Client) CreateUnderlay(ctx context.Context, u Underlay) error {
	root, err := c.root(ctx)
	if err != nil {
		return err
	}
	ids := u.holdings()
	ids[keyUnderlay] = u.Link
	create, err := c.create(
		&vswitchdb.Interface{UUID: "own_iface", Name: u.Bridge, Type: typeInternal, ExternalIDs: ids},
		&vswitchdb.Port{UUID: "own_port", Name: u.Bridge, Interfaces: []string{"own_iface"}},
		&vswitchdb.Interface{UUID: "link_iface", Name: u.Link},
		&vswitchdb.Port{UUID: "link_port", Name: u.Link, Interfaces: []string{"link_iface"}},
		&vswitchdb.Bridge{
			UUID: "br", Name: u.Bridge, Ports: []string{"own_port", "link_port"}, DatapathType: DatapathNetdev, OtherConfig: map[string]string{"hwaddr": u.MAC},
		},
	)
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", u.Bridge, err)
	}
	link, err := c.ovsdb.Where(root).Mutate(root, model.Mutation{Field: &root.Bridges, Mutator: ovsdb.MutateOperationInsert, Value: []string{"br"}})
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", u.Bridge, err)
	}
	if err := c.transact(ctx, append(create, link...)); err != nil {
		return fmt.Errorf("create bridge %s with link %s: %w", u.Bridge, u.Link, err)
	}
	return nil
}

// AddUnderlay remembers addresses and routes that the link has got since.
func (c *Client) AddUnderlay(ctx context.Context, u Underlay) error {
	row, err := c.interfaceNamed(ctx, u.Bridge)
	if err != nil || row == nil {
		return err
	}
	want := u.holdings()
	maps.DeleteFunc(want, func(k, v string) bool { return row.ExternalIDs[k] == v })
	if len(want) == 0 {
		return nil
	}
	ops, err := c.setKeys(row, &row.ExternalIDs, want)
	if err == nil {
		err = c.transact(ctx, ops)
	}
	if err != nil {
		return fmt.Errorf("set external_ids %v of Interface %s: %w", slices.Sorted(maps.Keys(want)), u.Bridge, err)
	}
	return nil
}

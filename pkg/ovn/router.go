package ovn

import (
	"context"
	"fmt"
	"slices"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

var routerKind = kind[nbdb.LogicalRouter]{
	table: nbdb.LogicalRouterTable,
	owned: func(r *nbdb.LogicalRouter) []any { return []any{&r.Options, &r.ExternalIDs} },
	uuid:  func(r *nbdb.LogicalRouter) *string { return &r.UUID },
	ids:   func(r *nbdb.LogicalRouter) map[string]string { return r.ExternalIDs },
	label: func(r *nbdb.LogicalRouter) string { return r.Name },
}

var routerPortKind = kind[nbdb.LogicalRouterPort]{
	table: nbdb.LogicalRouterPortTable,
	owned: func(p *nbdb.LogicalRouterPort) []any {
		return []any{&p.MAC, &p.Networks, &p.Ipv6RaConfigs, &p.ExternalIDs}
	},
	uuid:  func(p *nbdb.LogicalRouterPort) *string { return &p.UUID },
	ids:   func(p *nbdb.LogicalRouterPort) map[string]string { return p.ExternalIDs },
	label: func(p *nbdb.LogicalRouterPort) string { return p.Name },
}

var policyKind = kind[nbdb.LogicalRouterPolicy]{
	table: nbdb.LogicalRouterPolicyTable,
	owned: func(p *nbdb.LogicalRouterPolicy) []any {
		return []any{&p.Priority, &p.Match, &p.Action, &p.Nexthops, &p.ExternalIDs}
	},
	uuid:  func(p *nbdb.LogicalRouterPolicy) *string { return &p.UUID },
	ids:   func(p *nbdb.LogicalRouterPolicy) map[string]string { return p.ExternalIDs },
	label: func(p *nbdb.LogicalRouterPolicy) string { return p.Match },
}

var routeKind = kind[nbdb.LogicalRouterStaticRoute]{
	table: nbdb.LogicalRouterStaticRouteTable,
	owned: func(r *nbdb.LogicalRouterStaticRoute) []any {
		return []any{&r.IPPrefix, &r.Nexthop, &r.OutputPort, &r.ExternalIDs}
	},
	uuid:  func(r *nbdb.LogicalRouterStaticRoute) *string { return &r.UUID },
	ids:   func(r *nbdb.LogicalRouterStaticRoute) map[string]string { return r.ExternalIDs },
	label: func(r *nbdb.LogicalRouterStaticRoute) string { return r.IPPrefix },
}

// EnsureRouter makes the LogicalRouter want.Name. Written: the keys of options and external_ids that want names.
func EnsureRouter(want *nbdb.LogicalRouter) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.LogicalRouter{Name: want.Name})
		if err != nil {
			return nil, err
		}
		return routerKind.ensure(nb, have, want, nil)
	}
}

// EnsureRouterPort makes the LogicalRouterPort want.Name on a router. Written: mac, networks, and the keys of ipv6_ra_configs and external_ids that want
// names.
func EnsureRouterPort(lr ident.RouterName, want *nbdb.LogicalRouterPort) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.LogicalRouterPort{Name: want.Name})
		if err != nil {
			return nil, err
		}
		return routerPortKind.ensure(nb, have, want, &parent{table: nbdb.LogicalRouterTable, column: "ports", name: string(lr)})
	}
}

// DeleteRouterPort deletes a LogicalRouterPort of ours.
func DeleteRouterPort(name ident.RouterPortName) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := get(ctx, nb, &nbdb.LogicalRouterPort{Name: string(name)})
		if err != nil {
			return nil, err
		}
		return routerPortKind.remove(have, nbdb.LogicalRouterTable, "ports")
	}
}

// EnsurePolicy makes a policy of a router. A policy of ours is found by the owner, name, family and rule in its external_ids, so its match may change.
func EnsurePolicy(lr ident.RouterName, want *nbdb.LogicalRouterPolicy) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := nb.policy(ctx, want)
		if err != nil {
			return nil, err
		}
		return policyKind.ensure(nb, have, want, &parent{table: nbdb.LogicalRouterTable, column: "policies", name: string(lr)})
	}
}

// MakePolicy makes a policy of a router if there is none of its owner, name, family and rule, whatever that says.
func MakePolicy(lr ident.RouterName, want *nbdb.LogicalRouterPolicy) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		if have, err := nb.policy(ctx, want); err != nil || have != nil {
			return nil, err
		}
		return policyKind.create(nb, want, &parent{table: nbdb.LogicalRouterTable, column: "policies", name: string(lr)})
	}
}

// policy is the live copy's policy in whose place one would be, nil if there is none.
func (nb *NB) policy(ctx context.Context, want *nbdb.LogicalRouterPolicy) (*nbdb.LogicalRouterPolicy, error) {
	of, err := nb.policies(ctx, want.ExternalIDs[ident.OwnerKey], want.ExternalIDs[ident.KeyName])
	for _, p := range of {
		if sameOwner(p.ExternalIDs, want.ExternalIDs) && p.ExternalIDs[ident.KeyRule] == want.ExternalIDs[ident.KeyRule] {
			return p, err
		}
	}
	return nil, err
}

// DeletePolicies deletes the policies of one owner, given by its kind and name.
func DeletePolicies(owner, name string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		return removePolicies(nb.policies(ctx, owner, name))
	}
}

func removePolicies(have []*nbdb.LogicalRouterPolicy, err error) ([]step, error) {
	if err != nil {
		return nil, err
	}
	var all []step
	for _, p := range have {
		s, err := policyKind.remove(p, nbdb.LogicalRouterTable, "policies")
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	return all, nil
}

// DeletePolicyRule deletes those policies of an owner, given by its kind and name, that have a rule.
func DeletePolicyRule(owner, name, rule string) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		return removePolicies(nb.PolicyRule(ctx, owner, name, rule))
	}
}

// PolicyRule is the live copy's policies of an owner that have a rule. They must not be changed.
func (nb *NB) PolicyRule(ctx context.Context, owner, name, rule string) ([]*nbdb.LogicalRouterPolicy, error) {
	have, err := nb.policies(ctx, owner, name)
	return slices.DeleteFunc(have, func(p *nbdb.LogicalRouterPolicy) bool { return p.ExternalIDs[ident.KeyRule] != rule }), err
}

// policies are those of one owner. There are as many of them as nodes: they are looked up by an index.
func (nb *NB) policies(ctx context.Context, owner, name string) ([]*nbdb.LogicalRouterPolicy, error) {
	var rows []*nbdb.LogicalRouterPolicy
	index := &nbdb.LogicalRouterPolicy{ExternalIDs: map[string]string{ident.OwnerKey: owner, ident.KeyName: name}}
	if err := nb.ovsdb.Where(index).List(ctx, &rows); err != nil {
		return nil, fmt.Errorf("read the LogicalRouterPolicies of %s %s: %w", owner, name, err)
	}
	return rows, nil
}

// EnsureRoute makes a static route of a router. A route of ours is found by the owner, name and family in its external_ids.
func EnsureRoute(lr ident.RouterName, want *nbdb.LogicalRouterStaticRoute) Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		have, err := find(ctx, nb, func(r *nbdb.LogicalRouterStaticRoute) bool { return sameOwner(r.ExternalIDs, want.ExternalIDs) })
		if err != nil {
			return nil, err
		}
		return routeKind.ensure(nb, have, want, &parent{table: nbdb.LogicalRouterTable, column: "static_routes", name: string(lr)})
	}
}

func sameOwner(a, b map[string]string) bool {
	return a[ident.OwnerKey] == b[ident.OwnerKey] && a[ident.KeyName] == b[ident.KeyName] && a[ident.KeyFamily] == b[ident.KeyFamily]
}

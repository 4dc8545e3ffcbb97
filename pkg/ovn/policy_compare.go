package ovn

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// Compare reads what the database has and makes it what the source says, if that is not known to be so. The source must be complete: what it does not have is deleted.
func (w *PolicyWriter) Compare() Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		if w.known {
			return nil, nil
		}
		start := time.Now()
		have, err := nb.policyRows(ctx)
		if err != nil {
			return nil, err
		}
		w.source.Take() // all of it is in what follows
		w.unsettled = nil
		w.acls = map[policy.ACLKey]string{}
		t := &writing{PolicyWriter: w, nb: nb, ports: have.ports}
		want := w.source.Rows()
		changes := t.compare(have, want)
		if err := t.changes(ctx, changes); err != nil {
			return nil, t.abandon(err)
		}
		nb.log.Info("rows of NetworkPolicies compared with the database", "groups", len(want.Groups), "sets", len(want.Sets), "acls", len(want.ACLs),
			"acls_changed", len(changes.ACLs), "operations", len(t.steps), "took", time.Since(start).Round(time.Millisecond))
		// What is taken from the source from now on comes after these steps, in this transaction or a later one.
		w.known = true
		t.finally(func(_ ovsdb.OperationResult, err error) {
			if err != nil {
				w.failed()
			}
		})
		return t.steps, nil
	}
}

// Differs says whether the database has something else than the source says. What is being written meanwhile counts, so that only a difference that stays means
// something. It may be called at any time: unlike Compare it keeps nobody waiting.
func (w *PolicyWriter) Differs(ctx context.Context, nb *NB) (bool, error) {
	have, err := nb.policyRows(ctx)
	if err != nil {
		return false, err
	}
	t := &writing{PolicyWriter: &PolicyWriter{source: w.source, acls: map[policy.ACLKey]string{}}, nb: nb, ports: have.ports}
	c := t.compare(have, w.source.Rows())
	for _, g := range c.Groups {
		if g.Create != nil || g.Delete || len(g.Remove) > 0 || slices.ContainsFunc(g.Add, func(p ident.PortName) bool { return have.ports[p] != "" }) {
			return true, nil
		}
	}
	for _, s := range c.Sets {
		if s.Create != nil || s.Delete || len(s.Add)+len(s.Remove) > 0 {
			return true, nil
		}
	}
	return len(c.ACLs)+len(t.steps) > 0, nil
}

// stored are the rows of policies in the database.
type stored struct {
	groups []*nbdb.PortGroup
	sets   []*nbdb.AddressSet
	acls   map[string]*nbdb.ACL
	// ports are the UUIDs of ports by name.
	ports map[ident.PortName]string
}

func (nb *NB) policyRows(ctx context.Context) (stored, error) {
	var s stored
	var acls []*nbdb.ACL
	var ports []*nbdb.LogicalSwitchPort
	var ops []ovsdb.Operation
	port := &nbdb.LogicalSwitchPort{}
	for _, table := range []struct {
		row     model.Model
		columns []any
	}{{row: &nbdb.PortGroup{}}, {row: &nbdb.AddressSet{}}, {row: &nbdb.ACL{}}, {port, []any{&port.UUID, &port.Name}}} {
		op, err := nb.ovsdb.Select(table.row, table.columns...)
		if err != nil {
			return s, fmt.Errorf("read the rows of policies: %w", err)
		}
		ops = append(ops, op...)
	}
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	results, err := nb.ovsdb.Transact(ctx, ops...)
	if err != nil {
		return s, fmt.Errorf("read the rows of policies: %w", err)
	}
	for _, target := range []any{&s.groups, &s.sets, &acls, &ports} {
		if err := nb.ovsdb.GetSelectResults(ops, results, target); err != nil {
			return s, fmt.Errorf("read the rows of policies: %w", err)
		}
	}
	s.groups = slices.DeleteFunc(s.groups, func(g *nbdb.PortGroup) bool { return g.ExternalIDs[ident.OwnerKey] == "" })
	s.sets = slices.DeleteFunc(s.sets, func(a *nbdb.AddressSet) bool { return a.ExternalIDs[ident.OwnerKey] != ident.OwnerPolicy })
	s.acls = map[string]*nbdb.ACL{}
	for _, a := range acls {
		s.acls[a.UUID] = a
	}
	s.ports = make(map[ident.PortName]string, len(ports))
	for _, p := range ports {
		s.ports[ident.PortName(p.Name)] = p.UUID
	}
	return s, nil
}

// compare says what must change, and notes the ACLs that are there.
func (t *writing) compare(have stored, want policy.Rows) policy.Changes {
	var out policy.Changes
	names := make(map[string]ident.PortName, len(have.ports))
	for name, uuid := range have.ports {
		names[uuid] = name
	}
	groups := map[string]*nbdb.PortGroup{}
	for _, g := range have.groups {
		groups[g.Name] = g
	}
	for _, g := range want.Groups {
		c := policy.GroupChange{Name: g.Row.Name}
		if h := groups[g.Row.Name]; h == nil {
			c.Create, c.Add = g.Row, g.Ports
		} else {
			var members []ident.PortName
			for _, uuid := range h.Ports {
				if n, ok := names[uuid]; ok {
					members = append(members, n)
					continue
				}
				t.mutate(nbdb.PortGroupTable, h.Name, "ports", ovsdb.MutateOperationDelete, []any{ovsdb.UUID{GoUUID: uuid}}) // of a port that is gone, see leaveGroups
			}
			c.Add, c.Remove = difference(g.Ports, members)
		}
		out.Groups = append(out.Groups, c)
		delete(groups, g.Row.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		out.Groups = append(out.Groups, policy.GroupChange{Name: name, Delete: true})
	}
	out.Sets = compareSets(have.sets, want.Sets)
	out.ACLs = t.compareACLs(have, want.ACLs)
	return out
}

func compareSets(have, want []*nbdb.AddressSet) []policy.SetChange {
	var out []policy.SetChange
	sets := map[string]*nbdb.AddressSet{}
	for _, s := range have {
		sets[s.Name] = s
	}
	for _, s := range want {
		c := policy.SetChange{Name: s.Name}
		if h := sets[s.Name]; h == nil {
			row := *s
			row.Addresses = nil
			c.Create, c.Add = &row, s.Addresses
		} else {
			c.Add, c.Remove = difference(s.Addresses, h.Addresses)
		}
		out = append(out, c)
		delete(sets, s.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		out = append(out, policy.SetChange{Name: name, Delete: true})
	}
	return out
}

// compareACLs says which ACLs of wanted groups must change; those of others go with their group. One that is there twice goes once.
func (t *writing) compareACLs(have stored, want []policy.ACL) []policy.ACLChange {
	there := map[policy.ACLKey]policy.ACL{}
	for _, g := range have.groups {
		for _, uuid := range g.ACLs {
			row := have.acls[uuid]
			if row == nil {
				continue
			}
			a := policy.ACL{Group: g.Name, Row: row}
			if _, twice := there[a.Key()]; twice {
				t.dropACL(g.Name, uuid)
				continue
			}
			there[a.Key()] = a
			t.acls[a.Key()] = uuid
		}
	}
	var out []policy.ACLChange
	for _, a := range want {
		if h, ok := there[a.Key()]; !ok || !h.Equal(a) {
			out = append(out, policy.ACLChange{ACL: a})
		}
		delete(there, a.Key())
	}
	for _, a := range there {
		out = append(out, policy.ACLChange{ACL: a, Delete: true})
	}
	return out
}

// difference is what must come and go for have to become want.
func difference[T ~string](want, have []T) (add, remove []T) {
	had := make(map[T]bool, len(have))
	for _, h := range have {
		had[h] = true
	}
	for _, w := range want {
		if !had[w] {
			add = append(add, w)
		}
		delete(had, w)
	}
	return add, slices.Sorted(maps.Keys(had))
}

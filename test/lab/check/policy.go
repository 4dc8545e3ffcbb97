package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// Policies are what NetworkPolicies are about, and their rows in the northbound database.
type Policies struct {
	Config policy.Config
	// Snapshot is what the API says. Which ports take connections along is found by Ports, Grace and Now.
	Snapshot policy.Snapshot
	// Ports are all ports of the database, Groups, Sets and ACLs all rows of these tables, also those that are nobody's or somebody else's.
	Ports  []Port
	Groups []*nbdb.PortGroup
	Sets   []*nbdb.AddressSet
	ACLs   []*nbdb.ACL
	// Grace is for how long after a migration connections are taken along, zero if they never are.
	Grace time.Duration
	Now   time.Time
}

// ComparePolicies returns every difference between the rows that there are and those that the objects come to, in a stable order. A port that has no row yet is missed
// in no group.
func ComparePolicies(p Policies) []string {
	p.Snapshot.Moving = p.moving()
	want := policy.Compile(p.Config, p.Snapshot)
	c := &comparison{}
	c.groups(p, want.Groups)
	c.sets(p, want.Sets)
	c.acls(p, want.ACLs)
	slices.Sort(c.found)
	return c.found
}

// moving are the VMs' ports that both chassis are asked for, or were until a moment ago.
func (p Policies) moving() []ident.PortName {
	var out []ident.PortName
	for _, port := range p.Ports {
		at, err := time.Parse(time.RFC3339Nano, port.Moved)
		pair := migration.PortState{Requested: port.RequestedChassis}.Pair()
		if p.Grace > 0 && (pair || err == nil && p.Now.Before(at.Add(p.Grace))) {
			out = append(out, port.Name)
		}
	}
	return out
}

func ours(ids map[string]string) bool { return ids[ident.OwnerKey] == ident.OwnerPolicy }

func (c *comparison) groups(p Policies, want []policy.Group) {
	names := map[string]ident.PortName{}
	there := map[ident.PortName]bool{}
	for _, port := range p.Ports {
		names[port.RowUUID], there[port.Name] = port.Name, true
	}
	have := map[string][]ident.PortName{}
	for _, g := range p.Groups {
		if !ours(g.ExternalIDs) {
			continue
		}
		have[g.Name] = []ident.PortName{}
		for _, uuid := range g.Ports {
			have[g.Name] = append(have[g.Name], cmp.Or(names[uuid], ident.PortName("a port that does not exist")))
		}
	}
	for _, g := range want {
		ports, ok := have[g.Row.Name]
		delete(have, g.Row.Name)
		if !ok {
			c.differ("NB: there is no Port_Group %s (%s)", g.Row.Name, g.Row.ExternalIDs[ident.KeyContent])
			continue
		}
		plugged := slices.DeleteFunc(slices.Clone(g.Ports), func(n ident.PortName) bool { return !there[n] })
		c.members(fmt.Sprintf("Port_Group %s (%s)", g.Row.Name, g.Row.ExternalIDs[ident.KeyContent]), texts(plugged), texts(ports))
	}
	for name := range have {
		c.differ("NB: Port_Group %s follows from no NetworkPolicy", name)
	}
}

func (c *comparison) sets(p Policies, want []*nbdb.AddressSet) {
	have := map[string]*nbdb.AddressSet{}
	for _, s := range p.Sets {
		if ours(s.ExternalIDs) {
			have[s.Name] = s
		}
	}
	for _, s := range want {
		row := have[s.Name]
		delete(have, s.Name)
		if row == nil {
			c.differ("NB: there is no Address_Set %s (%s)", s.Name, s.ExternalIDs[ident.KeyContent])
			continue
		}
		c.members(fmt.Sprintf("Address_Set %s (%s)", s.Name, s.ExternalIDs[ident.KeyContent]), s.Addresses, row.Addresses)
	}
	for name := range have {
		c.differ("NB: Address_Set %s follows from no NetworkPolicy", name)
	}
}

// members compares what a row has.
func (c *comparison) members(row string, want, have []string) {
	without := func(list, other []string) []string {
		known := map[string]bool{}
		for _, o := range other {
			known[o] = true
		}
		return slices.DeleteFunc(slices.Sorted(slices.Values(list)), func(s string) bool { return known[s] })
	}
	if lacks := without(want, have); len(lacks) > 0 {
		c.differ("NB: %s lacks %v", row, lacks)
	}
	if more := without(have, want); len(more) > 0 {
		c.differ("NB: %s has %v, which does not belong in it", row, more)
	}
}

func (c *comparison) acls(p Policies, want []policy.ACL) {
	rows := map[string]*nbdb.ACL{}
	for _, a := range p.ACLs {
		rows[a.UUID] = a
	}
	have := map[policy.ACLKey]policy.ACL{}
	for _, g := range p.Groups {
		for _, uuid := range g.ACLs {
			row := rows[uuid]
			if row == nil || !ours(g.ExternalIDs) {
				continue
			}
			a := policy.ACL{Group: g.Name, Row: row}
			if _, twice := have[a.Key()]; twice {
				c.differ("NB: Port_Group %s has two ACLs %s", g.Name, said(a))
			}
			have[a.Key()] = a
		}
	}
	for _, a := range want {
		row, ok := have[a.Key()]
		delete(have, a.Key())
		switch {
		case !ok:
			c.differ("NB: Port_Group %s has no ACL %s", a.Group, said(a))
		case !row.Equal(a):
			c.differ("NB: Port_Group %s has ACL %s, want %s", a.Group, said(row), said(a))
		}
	}
	for _, a := range have {
		c.differ("NB: Port_Group %s has ACL %s, which follows from no NetworkPolicy", a.Group, said(a))
	}
}

// said is an ACL in words. Two that are said the same may differ in what they log.
func said(a policy.ACL) string {
	name, log := "without a name", ""
	if a.Row.Name != nil {
		name = *a.Row.Name
	}
	if a.Row.Log {
		log = ", logged"
	}
	return fmt.Sprintf("%s (%s, priority %d, %q, %s%s)", name, a.Row.Direction, a.Row.Priority, a.Row.Match, a.Row.Action, log)
}

func texts(ports []ident.PortName) []string {
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = string(p)
	}
	return out
}

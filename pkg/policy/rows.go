package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Rows are all rows that policies need, sorted by name.
type Rows struct {
	Groups []Group
	Sets   []*nbdb.AddressSet
	ACLs   []ACL
}

// Group is a port group with the names of its ports, some of which may not exist yet. Who makes a port puts it into its groups in the same transaction
// (Index.GroupsOf); OVN takes a port that is deleted out of them.
type Group struct {
	Row   *nbdb.PortGroup
	Ports []ident.PortName
}

// Changes are what to do to the rows as they were at the last Take, in this order: make rows, change members, add ACLs, delete ACLs, delete rows. One transaction for
// all of them is best. Deleting what is not there succeeds.
type Changes struct {
	Groups []GroupChange
	Sets   []SetChange
	ACLs   []ACLChange
}

// GroupChange is what changed in a port group.
type GroupChange struct {
	Name string
	// Create is the row, without ports, if it is new; Delete says that it goes.
	Create *nbdb.PortGroup
	Delete bool
	// Add and Remove are the ports that came and went, sorted.
	Add, Remove []ident.PortName
}

// SetChange is what changed in an address set.
type SetChange struct {
	Name string
	// Create is the row, without addresses, if it is new; Delete says that it goes.
	Create *nbdb.AddressSet
	Delete bool
	// Add and Remove are the addresses that came and went.
	Add, Remove []string
}

// ACLChange is an ACL that came, changed or went.
type ACLChange struct {
	// ACL as it is now; if Delete is set, as it was.
	ACL
	Delete bool
}

// Empty says whether there is nothing to do.
func (c Changes) Empty() bool { return len(c.Groups)+len(c.Sets)+len(c.ACLs) == 0 }

// Rows are all rows as they should be now, whatever Take has said.
func (x *Index) Rows() Rows {
	var out Rows
	for name, r := range x.groups.rows {
		if r.wanted {
			out.Groups = append(out.Groups, Group{Row: groupRow(name, r.about), Ports: x.groups.sorted(name)})
		}
	}
	for name, r := range x.sets.rows {
		if r.wanted {
			row := setRow(name, r.about)
			row.Addresses = elements(x.sets.sorted(name))
			out.Sets = append(out.Sets, row)
		}
	}
	out.ACLs = baseACLs()
	for _, h := range x.hosts {
		out.ACLs = append(out.ACLs, h.exemption()...)
	}
	for _, p := range x.policies {
		out.ACLs = append(out.ACLs, p.parsed.acls(x.numbers)...)
	}
	slices.SortFunc(out.Groups, func(a, b Group) int { return cmp.Compare(a.Row.Name, b.Row.Name) })
	slices.SortFunc(out.Sets, func(a, b *nbdb.AddressSet) int { return cmp.Compare(a.Name, b.Name) })
	sortACLs(out.ACLs)
	return out
}

// Take returns what changed since it was called last; the first time, everything. It is not said again: whoever cannot write it, or has another reason to doubt what
// the database says, compares that with Rows.
func (x *Index) Take() Changes {
	var out Changes
	for _, c := range x.groups.take() {
		g := GroupChange{Name: c.name, Delete: c.gone, Add: c.added, Remove: c.absent}
		if c.create {
			g.Create = groupRow(c.name, c.about)
		}
		out.Groups = append(out.Groups, g)
	}
	for _, c := range x.sets.take() {
		s := SetChange{Name: c.name, Delete: c.gone, Add: elements(c.added), Remove: elements(c.absent)}
		if c.create {
			s.Create = setRow(c.name, c.about)
		}
		out.Sets = append(out.Sets, s)
	}
	for o := range x.stale {
		now := x.aclsOf(o)
		out.ACLs = append(out.ACLs, changedACLs(x.written[o], now)...)
		if x.written[o] = now; len(now) == 0 {
			delete(x.written, o)
		}
	}
	clear(x.stale)
	slices.SortFunc(out.ACLs, func(a, b ACLChange) int { return cmp.Compare(a.Key(), b.Key()) })
	return out
}

func changedACLs(was, now []ACL) []ACLChange {
	var out []ACLChange
	had, has := byKey(was), byKey(now)
	for k, a := range has {
		if before, ok := had[k]; !ok || !before.Equal(a) {
			out = append(out, ACLChange{ACL: a})
		}
	}
	for k, a := range had {
		if _, ok := has[k]; !ok {
			out = append(out, ACLChange{ACL: a, Delete: true})
		}
	}
	return out
}

// maxAbout bounds the description of a row, which is for people.
const maxAbout = 200

func rowIDs(about string) map[string]string {
	if len(about) > maxAbout {
		about = about[:maxAbout] + "…"
	}
	return map[string]string{ident.OwnerKey: ident.OwnerPolicy, ident.KeyContent: about}
}

func groupRow(name, about string) *nbdb.PortGroup {
	return &nbdb.PortGroup{Name: name, ExternalIDs: rowIDs(about)}
}

func setRow(name, about string) *nbdb.AddressSet {
	return &nbdb.AddressSet{Name: name, ExternalIDs: rowIDs(about)}
}

func elements(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, element(p))
	}
	return out
}

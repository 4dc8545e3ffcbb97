package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// storedRows are the rows of policies in a database, members by the names of ports.
type storedRows struct {
	groups map[string]map[string]bool
	sets   map[string]map[string]bool
	acls   map[string]map[string]int // by group: match and action
	ports  map[string]string         // names by UUID
	// aclUUIDs by what the ACL says.
	aclUUIDs map[string]string
}

func stored(t *testing.T, central *ovntest.OVNCentral) storedRows {
	t.Helper()
	out := storedRows{map[string]map[string]bool{}, map[string]map[string]bool{}, map[string]map[string]int{}, map[string]string{}, map[string]string{}}
	rows := central.Dump(t, nbdb.PortGroupTable, nbdb.AddressSetTable, nbdb.ACLTable, nbdb.LogicalSwitchPortTable)
	acls := map[string]string{}
	for _, r := range rows[nbdb.LogicalSwitchPortTable] {
		out.ports[uuidOf(r["_uuid"])] = r["name"].(string)
	}
	for _, r := range rows[nbdb.ACLTable] {
		text := fmt.Sprint(r["priority"], " ", r["direction"], " ", r["match"], " ", r["action"])
		acls[uuidOf(r["_uuid"])], out.aclUUIDs[text] = text, uuidOf(r["_uuid"])
	}
	for _, r := range rows[nbdb.PortGroupTable] {
		name := r["name"].(string)
		out.groups[name], out.acls[name] = map[string]bool{}, map[string]int{}
		for _, p := range elementsOf(r["ports"]) {
			out.groups[name][out.ports[uuidOf(p)]] = true
		}
		for _, a := range elementsOf(r["acls"]) {
			out.acls[name][acls[uuidOf(a)]]++
		}
	}
	for _, r := range rows[nbdb.AddressSetTable] {
		if textMap(r["external_ids"])[ident.OwnerKey] != ident.OwnerPolicy {
			continue // of Services
		}
		name := r["name"].(string)
		if strings.HasPrefix(name, "godwit_anchor_") || strings.HasPrefix(name, "godwit_hosts_") || strings.HasPrefix(name, "godwit_elsewhere_") {
			continue // no policy's
		}
		out.sets[name] = map[string]bool{}
		for _, a := range elementsOf(r["addresses"]) {
			out.sets[name][a.(string)] = true
		}
	}
	return out
}

func textMap(v any) map[string]string {
	out := map[string]string{}
	if m, ok := v.(ovsdb.OvsMap); ok {
		for k, v := range m.GoMap {
			out[fmt.Sprint(k)] = fmt.Sprint(v)
		}
	}
	return out
}

func uuidOf(v any) string {
	u, _ := v.(ovsdb.UUID)
	return u.GoUUID
}

func elementsOf(v any) []any {
	if s, ok := v.(ovsdb.OvsSet); ok {
		return s.GoSet
	}
	return []any{v}
}

func (s storedRows) differs(want policy.Rows) string {
	plugged := map[string]bool{}
	for _, name := range s.ports {
		plugged[name] = true
	}
	acls := map[string]map[string]int{}
	for _, a := range want.ACLs {
		if acls[a.Group] == nil {
			acls[a.Group] = map[string]int{}
		}
		acls[a.Group][fmt.Sprint(a.Row.Priority, " ", a.Row.Direction, " ", a.Row.Match, " ", a.Row.Action)]++
	}
	if len(want.Groups) != len(s.groups) || len(want.Sets) != len(s.sets) {
		return fmt.Sprintf("%d groups and %d sets, want %d and %d", len(s.groups), len(s.sets), len(want.Groups), len(want.Sets))
	}
	for _, g := range want.Groups {
		have := s.groups[g.Row.Name]
		members := map[string]bool{}
		for _, p := range g.Ports {
			if plugged[string(p)] {
				members[string(p)] = true
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(members) {
			return fmt.Sprintf("group %s has %v, want %v", g.Row.Name, have, members)
		}
		if fmt.Sprint(s.acls[g.Row.Name]) != fmt.Sprint(acls[g.Row.Name]) && len(acls[g.Row.Name])+len(s.acls[g.Row.Name]) > 0 {
			return fmt.Sprintf("ACLs of group %s are %v, want %v", g.Row.Name, s.acls[g.Row.Name], acls[g.Row.Name])
		}
	}
	for _, w := range want.Sets {
		members := map[string]bool{}
		for _, a := range w.Addresses {
			members[a] = true
		}
		if fmt.Sprint(s.sets[w.Name]) != fmt.Sprint(members) {
			return fmt.Sprintf("set %s has %v, want %v", w.Name, s.sets[w.Name], members)
		}
	}
	return ""
}

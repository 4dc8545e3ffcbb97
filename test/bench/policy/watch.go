package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	ovsdbclient "github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
	"github.com/godwit-cni/godwit/test/bench/central"
)

// The columns that are watched beside those of ports: it shares the machine with what it watches.
type (
	setRow struct {
		UUID      string   `ovsdb:"_uuid"`
		Name      string   `ovsdb:"name"`
		Addresses []string `ovsdb:"addresses"`
	}
	groupRow struct {
		UUID  string   `ovsdb:"_uuid"`
		Name  string   `ovsdb:"name"`
		Ports []string `ovsdb:"ports"`
	}
	aclRow struct {
		UUID     string `ovsdb:"_uuid"`
		Priority int    `ovsdb:"priority"`
	}
)

// thePort is the row that a port's own is noted under.
const thePort = "(its own row)"

// members says which rows of a database have what: addresses and ports.
type members struct {
	mu      sync.Mutex
	rows    map[string]map[string]bool // by member
	changed map[string]time.Time       // by member
	sizes   map[string]int             // by row
	pods    int
	acls    int
}

func newMembers() *members {
	return &members{rows: map[string]map[string]bool{}, changed: map[string]time.Time{}, sizes: map[string]int{}}
}

// note takes down what has come to and gone from a row.
func (m *members) note(row string, before, now []string) {
	at := time.Now()
	had := make(map[string]bool, len(before))
	for _, b := range before {
		had[b] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sizes[row] = len(now)
	if row == thePort {
		m.pods += countPods(now) - countPods(before)
	}
	for _, n := range now {
		if had[n] {
			delete(had, n)
			continue
		}
		if m.rows[n] == nil {
			m.rows[n] = map[string]bool{}
		}
		m.rows[n][row], m.changed[n] = true, at
	}
	for gone := range had {
		delete(m.rows[gone], row)
		m.changed[gone] = at
	}
}

// exactly says whether a member is in these rows and in no other, and since when.
func (m *members) exactly(member string, rows []string) (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rows[member]) != len(rows) {
		return time.Time{}, false
	}
	for _, r := range rows {
		if !m.rows[member][r] {
			return time.Time{}, false
		}
	}
	return m.changed[member], true
}

func (m *members) size(row string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sizes[row]
}

func (m *members) countACLs(by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acls += by
}

func (m *members) countOfACLs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.acls
}

// countPods counts the ports that are pods'. Nodes' and Subnets' come when they come.
func countPods(ports []string) int {
	n := 0
	for _, p := range ports {
		if _, _, _, ok := ident.ParsePodPort(ident.PortName(p)); ok {
			n++
		}
	}
	return n
}

// countOfPods is how many pods' ports the database has.
func (m *members) countOfPods() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pods
}

// change notes what an event says of a row, of which before or now is nil if it came or went.
func (m *members) change(before, now model.Model) {
	name, had := content(before)
	also, has := content(now)
	if name == "" {
		name = also
	}
	if name != "" {
		m.note(name, had, has)
	}
	switch {
	case isACL(now) && before == nil:
		m.countACLs(1)
	case isACL(before) && now == nil:
		m.countACLs(-1)
	}
}

// handler notes what a database tells.
func (m *members) handler() cache.EventHandler {
	return &cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row model.Model) { m.change(nil, row) },
		UpdateFunc: func(_ string, before, now model.Model) { m.change(before, now) },
		DeleteFunc: func(_ string, row model.Model) { m.change(row, nil) },
	}
}

func isACL(m model.Model) bool {
	_, ok := m.(*aclRow)
	return ok
}

// content is a row's name and its members; of a port the port.
func content(m model.Model) (name string, has []string) {
	switch r := m.(type) {
	case *central.PortRow:
		return thePort, []string{r.Name}
	case *central.BindingRow:
		return thePort, []string{r.Port}
	case *setRow:
		if strings.HasSuffix(r.Name, "_ip4") || strings.HasSuffix(r.Name, "_ip6") { // of a port group, northd makes them of its own accord (ovn-nb(5), Port_Group)
			return "", nil
		}
		return r.Name, r.Addresses
	case *groupRow:
		// The southbound database has a group for each datapath: NUMBER_NAME (ovn-sb(5)).
		_, name, _ := strings.Cut(r.Name, "_")
		return name, r.Ports
	}
	return "", nil
}

// watcher sees the rows of both databases.
type watcher struct{ nb, sb *members }

// watch watches until close is called.
func watch(ctx context.Context, nb, sb string) (w *watcher, closeAll func(), err error) {
	w = &watcher{nb: newMembers(), sb: newMembers()}
	var port central.PortRow
	var set setRow
	var acl aclRow
	from := central.Origin{Endpoint: nb, Database: "OVN_Northbound", Tables: map[string]model.Model{nbdb.LogicalSwitchPortTable: &port, nbdb.AddressSetTable: &set, nbdb.ACLTable: &acl}}
	north, err := central.Monitor(ctx, from, w.nb.handler(),
		ovsdbclient.WithTable(&port, &port.Name), ovsdbclient.WithTable(&set, &set.Name, &set.Addresses), ovsdbclient.WithTable(&acl, &acl.Priority))
	if err != nil {
		return nil, nil, err
	}
	var binding central.BindingRow
	var group groupRow
	from = central.Origin{Endpoint: sb, Database: "OVN_Southbound", Tables: map[string]model.Model{sbdb.PortBindingTable: &binding, sbdb.AddressSetTable: &set, sbdb.PortGroupTable: &group}}
	south, err := central.Monitor(ctx, from, w.sb.handler(),
		ovsdbclient.WithTable(&binding, &binding.Port), ovsdbclient.WithTable(&set, &set.Name, &set.Addresses), ovsdbclient.WithTable(&group, &group.Name, &group.Ports))
	if err != nil {
		north.Close()
		return nil, nil, err
	}
	return w, func() { north.Close(); south.Close() }, nil
}

// expectation is that a member is in certain rows of a database.
type expectation struct {
	in     *members
	member string
	rows   []string
}

// since says whether all expectations are met, and since when.
func since(list []expectation) (time.Time, bool) {
	var last time.Time
	for _, e := range list {
		at, ok := e.in.exactly(e.member, e.rows)
		if !ok {
			return time.Time{}, false
		}
		if at.After(last) {
			last = at
		}
	}
	return last, true
}

// expect is what both databases have of a port and its addresses when the pod has its places; no places at all when it is gone.
func (w *watcher) expect(port string, ips []string, p *places) (nb, sb []expectation) {
	var own, groups []string
	var sets [2][]string
	if p != nil {
		own, sets = []string{thePort}, p.sets
		groups = slices.Concat(own, p.groups)
	}
	nb, sb = []expectation{{w.nb, port, own}}, []expectation{{w.sb, port, groups}}
	for i, ip := range ips {
		nb = append(nb, expectation{w.nb, ip, sets[i]})
		sb = append(sb, expectation{w.sb, ip, sets[i]})
	}
	return nb, sb
}

func isPolicyTable(table string) bool {
	switch table {
	case "Port_Group", "Address_Set", "ACL":
		return true
	}
	return false
}

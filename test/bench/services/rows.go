package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/cache"
	ovsdbclient "github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/test/bench/central"
)

// lbRow is a Load_Balancer with the columns that are watched: the bench shares the machine with what it watches.
type lbRow struct {
	UUID string            `ovsdb:"_uuid"`
	Name string            `ovsdb:"name"`
	Vips map[string]string `ovsdb:"vips"`
}

// rows are the load balancers that the northbound database has, and the ports.
type rows struct {
	mu   sync.Mutex
	lbs  map[string]string // endpoints of all addresses, by name
	port map[string]bool
	// sizes is how many load balancers have so many endpoints.
	sizes map[int]int
}

func newRows() *rows {
	return &rows{lbs: map[string]string{}, port: map[string]bool{}, sizes: map[int]int{}}
}

// watch watches until the function that it returns is called.
func (r *rows) watch(ctx context.Context, cl *central.Cluster) (closeRows func(), err error) {
	var lb lbRow
	var port central.PortRow
	from := central.Origin{Endpoint: cl.NB, Database: "OVN_Northbound", Tables: map[string]model.Model{"Load_Balancer": &lb, "Logical_Switch_Port": &port}}
	client, err := central.Monitor(ctx, from, &cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row model.Model) { r.add(row) },
		UpdateFunc: func(_ string, _, row model.Model) { r.add(row) },
		DeleteFunc: func(_ string, row model.Model) { r.remove(row) },
	}, ovsdbclient.WithTable(&lb, &lb.Name, &lb.Vips), ovsdbclient.WithTable(&port, &port.Name))
	if err != nil {
		return nil, err
	}
	return client.Close, nil
}

// add notes a row as it is now.
func (r *rows) add(row model.Model) {
	r.remove(row)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch row := row.(type) {
	case *central.PortRow:
		r.port[row.Name] = true
	case *lbRow:
		r.lbs[row.Name] = strings.Join(slices.Collect(maps.Values(row.Vips)), ",")
		r.sizes[size(r.lbs[row.Name])]++
	}
}

// remove notes that a row is gone.
func (r *rows) remove(row model.Model) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch row := row.(type) {
	case *central.PortRow:
		delete(r.port, row.Name)
	case *lbRow:
		if before, known := r.lbs[row.Name]; known {
			r.sizes[size(before)]--
			delete(r.lbs, row.Name)
		}
	}
}

func size(ends string) int {
	if ends == "" {
		return 0
	}
	return strings.Count(ends, ",") + 1
}

// whole is how many load balancers have so many endpoints.
func (r *rows) whole(endpoints int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sizes[endpoints]
}

// endpoints is how many a load balancer has.
func (r *rows) endpoints(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return size(r.lbs[name])
}

// hasPort says whether a port has its row.
func (r *rows) hasPort(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.port[name]
}

package ovn

// Service writer.
// In:   what Services come to (a ServiceSource).
// Out:  Load_Balancer rows of ours with all their columns, and their place in the Load_Balancer_Group of the network; variables godwit_… of Chassis_Template_Var, and rows of
//       chassis that have none; addresses of the Address_Sets godwit_services_local_….
// Like PolicyWriter it has no live copy of these tables: it knows what it has written, and reads them (Compare) when it cannot know. What has changed is what differs from
// what was written: of a row of a thousand endpoints, of which one changes, the one key.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// ServiceSource has what Services come to. It is asked by the commit loop, while others change it.
type ServiceSource interface {
	// Take returns the Services whose rows may be others since the last Take.
	Take() []service.Key
	// Rows are those of a Service, zero if it has none.
	Rows(service.Key) topology.ServiceRows
	// All are the rows of all Services.
	All() map[service.Key]topology.ServiceRows
}

// ServiceWriter brings what a source says to the database.
type ServiceWriter struct {
	source ServiceSource
	// again is called when there is something to write that no change has asked for.
	again func()

	// The rest belongs to the commit loop.

	// known: what the database has is in written, but for what is sent just now.
	known   bool
	written map[service.Key]*writtenService
	// chassis are those that have a row of variables.
	chassis map[ident.ChassisName]bool
	// local are the addresses that each Service was last found to want in the sets that all share, users how many want one.
	local map[service.Key][]netip.Addr
	users map[netip.Addr]int
	// dirty are Services to be written, sent those that a transaction is about which has not ended.
	dirty, sent map[service.Key]bool
}

// writtenService is what the database has of a Service.
type writtenService struct {
	// balancers by name, with their UUIDs.
	balancers map[string]*nbdb.LoadBalancer
	topology.ServiceRows
}

// NewServiceWriter returns a writer that writes nothing before its first Compare. again must return at once.
func (nb *NB) NewServiceWriter(source ServiceSource, again func()) *ServiceWriter {
	return &ServiceWriter{
		source: source, again: again, written: map[service.Key]*writtenService{}, chassis: map[ident.ChassisName]bool{},
		local: map[service.Key][]netip.Addr{}, users: map[netip.Addr]int{}, dirty: map[service.Key]bool{}, sent: map[service.Key]bool{},
	}
}

// claim notes which addresses a Service wants in the sets that all share.
func (w *ServiceWriter) claim(key service.Key, want []netip.Addr) {
	for _, a := range w.local[key] {
		if w.users[a]--; w.users[a] == 0 {
			delete(w.users, a)
		}
	}
	delete(w.local, key)
	for _, a := range want {
		w.users[a]++
	}
	if len(want) > 0 {
		w.local[key] = want
	}
}

// Pending writes what the source says since the last time.
func (w *ServiceWriter) Pending() Change {
	return func(_ context.Context, nb *NB) ([]step, error) {
		if !w.known {
			return nil, nil
		}
		for _, key := range w.source.Take() {
			w.dirty[key] = true
		}
		t := &serving{ServiceWriter: w, nb: nb, guard: true}
		for _, key := range slices.SortedFunc(maps.Keys(w.dirty), service.Key.Compare) {
			if w.sent[key] {
				continue // in this very transaction: when that has ended it is looked at again
			}
			if err := t.service(key, w.source.Rows(key)); err != nil {
				settle(t.steps, nil, refused{err})
				return nil, err
			}
		}
		t.join()
		return t.steps, nil
	}
}

// Stale says that the database may have something else than was written.
func (w *ServiceWriter) Stale() Change {
	return func(context.Context, *NB) ([]step, error) {
		w.known = false
		return nil, nil
	}
}

// failed: what the database has is not known any more.
func (w *ServiceWriter) failed() {
	if w.known {
		w.known = false
		w.again()
	}
}

// serving makes the steps of one transaction.
type serving struct {
	*ServiceWriter
	nb    *NB
	steps []step
	// guard: a load balancer is made only if there is none of its name. OVN's schema does not see to that.
	guard bool
	// joining are load balancers that the group does not have yet.
	joining []any
	// idle is how many steps delete rows of ours that say nothing: nobody has changed them.
	idle int
}

// service adds the steps that make the rows of one Service as wanted.
func (t *serving) service(key service.Key, want topology.ServiceRows) error {
	delete(t.dirty, key)
	have := t.written[key]
	if have == nil {
		have = &writtenService{}
	}
	before := len(t.steps)
	next, err := t.balancers(have, want)
	if err != nil {
		return err
	}
	if err := t.variables(have.Variables, want.Variables); err != nil {
		return err
	}
	t.claim(key, want.Local)
	t.addresses(have.Local, want.Local)
	if len(t.steps) == before {
		t.keep(key, next)
		return nil
	}
	t.sent[key] = true
	t.finally(func(_ ovsdb.OperationResult, err error) { t.settled(key, next, err) })
	return nil
}

// balancers makes those of one Service as wanted.
func (t *serving) balancers(have *writtenService, want topology.ServiceRows) (*writtenService, error) {
	next := &writtenService{ServiceRows: want, balancers: map[string]*nbdb.LoadBalancer{}}
	for _, lb := range want.LoadBalancers {
		row := *lb
		next.balancers[row.Name] = &row
		if err := t.balancer(have.balancers[row.Name], &row); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.balancers)) {
		if next.balancers[name] == nil {
			t.add(ovsdb.Operation{Op: ovsdb.OperationDelete, Table: nbdb.LoadBalancerTable, Where: byUUID(have.balancers[name].UUID)})
		}
	}
	return next, nil
}

// addresses changes those that only a load balancer on the client's node serves. One that another Service wants stays: one may have got it of another that goes, or both have a port of it.
func (t *serving) addresses(have, want []netip.Addr) {
	for _, a := range have {
		if !slices.Contains(want, a) && t.users[a] == 0 {
			t.mutate(nbdb.AddressSetTable, topology.LocalServicesSet(a), "addresses", ovsdb.MutateOperationDelete, []any{a.String()})
		}
	}
	for _, a := range want {
		if !slices.Contains(have, a) {
			t.mutate(nbdb.AddressSetTable, topology.LocalServicesSet(a), "addresses", ovsdb.MutateOperationInsert, []any{a.String()})
		}
	}
}

// settled notes what has become of a Service that was sent.
func (w *ServiceWriter) settled(key service.Key, next *writtenService, err error) {
	delete(w.sent, key)
	switch {
	case err == nil:
		w.keep(key, next)
	case isRefused(err) && !errors.Is(err, errTwice): // what may be another's part of the transaction
		w.dirty[key] = true
	default:
		w.failed()
	}
	if len(w.dirty) > 0 {
		w.again()
	}
}

func (w *ServiceWriter) keep(key service.Key, next *writtenService) {
	if len(next.balancers) == 0 {
		delete(w.written, key)
		return
	}
	w.written[key] = next
}

// balancer makes one load balancer as wanted. have is nil if there is none.
func (t *serving) balancer(have, want *nbdb.LoadBalancer) error {
	if have == nil {
		return t.create(want)
	}
	want.UUID = have.UUID
	if !maps.Equal(have.Options, want.Options) || !maps.Equal(have.ExternalIDs, want.ExternalIDs) || !equalPointers(have.Protocol, want.Protocol) ||
		!slices.Equal(slices.Sorted(slices.Values(have.SelectionFields)), slices.Sorted(slices.Values(want.SelectionFields))) {
		ops, err := t.nb.ovsdb.Where(want).Update(want, &want.Options, &want.ExternalIDs, &want.Protocol, &want.SelectionFields)
		if err != nil {
			return fmt.Errorf("%s %s: %w", nbdb.LoadBalancerTable, want.Name, err)
		}
		for _, op := range ops {
			t.one(op)
		}
	}
	t.mapping(nbdb.LoadBalancerTable, byUUID(want.UUID), change{column: "vips", have: have.Vips, want: want.Vips})
	return nil
}

func (t *serving) create(want *nbdb.LoadBalancer) error {
	if t.guard {
		zero := 0
		t.steps = append(t.steps, step{
			op: ovsdb.Operation{Op: ovsdb.OperationWait, Table: nbdb.LoadBalancerTable, Where: named(want.Name), Columns: []string{"name"}, Until: "!=",
				Rows: []ovsdb.Row{{"name": want.Name}}, Timeout: &zero},
			fails: fmt.Errorf("%s %s: %w", nbdb.LoadBalancerTable, want.Name, errTwice), settled: t.done,
		})
	}
	t.nb.named++
	row := *want
	row.UUID = t.nb.namedUUID()
	ops, err := t.nb.ovsdb.Create(&row)
	if err != nil {
		return fmt.Errorf("%s %s: %w", nbdb.LoadBalancerTable, want.Name, err)
	}
	for _, op := range ops {
		t.steps = append(t.steps, step{op: op, settled: func(r ovsdb.OperationResult, err error) {
			if err == nil {
				want.UUID = r.UUID.GoUUID
			}
		}})
	}
	t.joining = append(t.joining, ovsdb.UUID{GoUUID: row.UUID})
	return nil
}

// join puts new load balancers into the group: all at once, as each time costs what the group has.
func (t *serving) join() {
	t.mutate(nbdb.LoadBalancerGroupTable, ident.ServiceGroup(ident.DefaultNetwork), "load_balancer", ovsdb.MutateOperationInsert, t.joining)
	t.joining = nil
}

// variables changes those of chassis. A chassis without a row gets one.
func (t *serving) variables(have, want map[ident.ChassisName]map[string]string) error {
	names := maps.Clone(have)
	if names == nil {
		names = map[ident.ChassisName]map[string]string{}
	}
	maps.Copy(names, want)
	for _, chassis := range slices.Sorted(maps.Keys(names)) {
		if !t.chassis[chassis] {
			t.nb.named++
			ops, err := t.nb.ovsdb.Create(&nbdb.ChassisTemplateVar{
				UUID: t.nb.namedUUID(), Chassis: string(chassis), ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerService},
			})
			if err != nil {
				return fmt.Errorf("%s %s: %w", nbdb.ChassisTemplateVarTable, chassis, err)
			}
			for _, op := range ops {
				t.add(op)
			}
			t.chassis[chassis] = true
			t.finally(func(_ ovsdb.OperationResult, err error) {
				if err != nil {
					delete(t.ServiceWriter.chassis, chassis)
				}
			})
		}
		where := []ovsdb.Condition{ovsdb.NewCondition("chassis", ovsdb.ConditionEqual, string(chassis))}
		t.mapping(nbdb.ChassisTemplateVarTable, where, change{column: "variables", have: have[chassis], want: want[chassis]})
	}
	return nil
}

func byUUID(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})}
}

func equalPointers[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

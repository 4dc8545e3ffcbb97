package ovn

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// Compare reads what the database has and makes it what the source says, if that is not known to be so. The source must be complete: what it does not have is deleted.
// In a transaction that writes Services already it does nothing, and asks for another.
func (w *ServiceWriter) Compare() Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		if w.known {
			return nil, nil
		}
		if len(w.sent) > 0 { // by this very transaction: what is read now would lack it
			w.again()
			return nil, nil
		}
		start := time.Now()
		have, err := nb.serviceRows(ctx)
		if err != nil {
			return nil, err
		}
		w.source.Take() // all of it is in what follows
		clear(w.dirty)
		want := w.source.All()
		t := &serving{ServiceWriter: w, nb: nb}
		changed, err := t.compare(have, want)
		if err != nil {
			settle(t.steps, nil, refused{err})
			return nil, err
		}
		nb.log.Info("load balancers of Services compared with the database", "services", len(want), "changed", len(changed), "operations", len(t.steps), "took", time.Since(start).Round(time.Millisecond))
		// What is taken from the source from now on comes after these steps, in a later transaction.
		w.known = true
		for _, key := range changed {
			w.sent[key] = true
		}
		if len(t.steps) > 0 {
			t.finally(func(_ ovsdb.OperationResult, err error) {
				clear(w.sent)
				if err != nil {
					w.failed()
				}
				if len(w.dirty) > 0 {
					w.again()
				}
			})
		}
		return t.steps, nil
	}
}

// maxIdle is how many rows of chassis that say nothing may stay: those of nodes that had endpoints of some Service, and will have them again. Names of nodes come from EndpointSlices, and may be any.
const maxIdle = 100

// Differs says whether the database has something else than the source says. What is being written meanwhile counts, so that only a difference that stays means
// something. It may be called at any time.
func (w *ServiceWriter) Differs(ctx context.Context, nb *NB) (bool, error) {
	have, err := nb.serviceRows(ctx)
	if err != nil {
		return false, err
	}
	aside := &NB{connection: nb.connection} // names of its own for rows that are never made
	t := &serving{ServiceWriter: nb.NewServiceWriter(w.source, func() {}), nb: aside}
	if _, err := t.compare(have, w.source.All()); err != nil {
		return false, err
	}
	return len(t.steps) > t.idle || t.idle > maxIdle, nil
}

// storedServices are the rows of Services in the database.
type storedServices struct {
	balancers []*nbdb.LoadBalancer
	groups    []*nbdb.LoadBalancerGroup
	variables []*nbdb.ChassisTemplateVar
	sets      []*nbdb.AddressSet
}

func (nb *NB) serviceRows(ctx context.Context) (storedServices, error) {
	var s storedServices
	var ops []ovsdb.Operation
	for _, row := range []model.Model{&nbdb.LoadBalancer{}, &nbdb.LoadBalancerGroup{}, &nbdb.ChassisTemplateVar{}, &nbdb.AddressSet{}} {
		op, err := nb.ovsdb.Select(row)
		if err != nil {
			return s, fmt.Errorf("read the rows of Services: %w", err)
		}
		ops = append(ops, op...)
	}
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	results, err := nb.ovsdb.Transact(ctx, ops...)
	if err != nil {
		return s, fmt.Errorf("read the rows of Services: %w", err)
	}
	for _, target := range []any{&s.balancers, &s.groups, &s.variables, &s.sets} {
		if err := nb.ovsdb.GetSelectResults(ops, results, target); err != nil {
			return s, fmt.Errorf("read the rows of Services: %w", err)
		}
	}
	s.balancers = slices.DeleteFunc(s.balancers, func(l *nbdb.LoadBalancer) bool { return l.ExternalIDs[ident.OwnerKey] != ident.OwnerService })
	s.sets = slices.DeleteFunc(s.sets, func(a *nbdb.AddressSet) bool { return a.ExternalIDs[ident.OwnerKey] != ident.OwnerService })
	s.groups = slices.DeleteFunc(s.groups, func(g *nbdb.LoadBalancerGroup) bool { return g.Name != ident.ServiceGroup(ident.DefaultNetwork) })
	return s, nil
}

// compare adds the steps that make the database as wanted, and says which Services they are about.
func (t *serving) compare(have storedServices, want map[service.Key]topology.ServiceRows) (changed []service.Key, err error) {
	if err := t.shared(have); err != nil {
		return nil, err
	}
	found := t.read(have)
	t.ServiceWriter.written = make(map[service.Key]*writtenService, len(want))
	keys := maps.Clone(found)
	for key := range want {
		if keys[key] == nil {
			keys[key] = &writtenService{}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(keys), service.Key.Compare) {
		before := len(t.steps)
		next, err := t.balancers(keys[key], want[key])
		if err != nil {
			return nil, err
		}
		t.keep(key, next)
		if len(t.steps) > before {
			changed = append(changed, key)
		}
	}
	t.join()
	return changed, t.compareShared(have, want)
}

// compareShared makes right what belongs to a Service and is in rows that it shares with others.
func (t *serving) compareShared(have storedServices, want map[service.Key]topology.ServiceRows) error {
	wanted, found := map[ident.ChassisName]map[string]string{}, map[ident.ChassisName]map[string]string{}
	var local []netip.Addr
	clear(t.local)
	clear(t.users)
	for key, rows := range want {
		t.claim(key, rows.Local)
		local = append(local, rows.Local...)
		for chassis, variables := range rows.Variables {
			if wanted[chassis] == nil {
				wanted[chassis] = map[string]string{}
			}
			maps.Copy(wanted[chassis], variables)
		}
	}
	for _, row := range have.variables {
		chassis := ident.ChassisName(row.Chassis)
		if row.ExternalIDs[ident.OwnerKey] == ident.OwnerService && len(row.Variables) == 0 && len(wanted[chassis]) == 0 { // of a node that may be gone
			t.add(ovsdb.Operation{Op: ovsdb.OperationDelete, Table: nbdb.ChassisTemplateVarTable, Where: byUUID(row.UUID)})
			t.idle++
			delete(t.chassis, chassis)
			continue
		}
		ours := maps.Clone(row.Variables)
		maps.DeleteFunc(ours, func(name, _ string) bool { return !ident.IsTemplateVar(name) })
		found[chassis] = ours
	}
	if err := t.variables(found, wanted); err != nil {
		return err
	}
	var listed []netip.Addr
	for _, set := range have.sets {
		for _, text := range set.Addresses {
			if a, err := netip.ParseAddr(text); err == nil && topology.LocalServicesSet(a) == set.Name {
				listed = append(listed, a)
			} else { // by hand
				t.mutate(nbdb.AddressSetTable, set.Name, "addresses", ovsdb.MutateOperationDelete, []any{text})
			}
		}
	}
	slices.SortFunc(local, netip.Addr.Compare)
	t.addresses(listed, slices.Compact(local))
	return nil
}

// shared makes the rows that Services share.
func (t *serving) shared(have storedServices) error {
	var missing []model.Model
	if len(have.groups) == 0 {
		t.nb.named++
		missing = append(missing, &nbdb.LoadBalancerGroup{UUID: t.nb.namedUUID(), Name: ident.ServiceGroup(ident.DefaultNetwork)})
	}
	for _, set := range topology.LocalServices() {
		if !slices.ContainsFunc(have.sets, func(s *nbdb.AddressSet) bool { return s.Name == set.Name }) {
			t.nb.named++
			set.UUID = t.nb.namedUUID()
			missing = append(missing, set)
		}
	}
	for _, row := range missing {
		ops, err := t.nb.ovsdb.Create(row)
		if err != nil {
			return fmt.Errorf("%T of Services: %w", row, err)
		}
		for _, op := range ops {
			t.add(op)
		}
	}
	return nil
}

// read says what is there of each Service. A load balancer that is there twice goes once; one that is not in the group joins it.
func (t *serving) read(have storedServices) map[service.Key]*writtenService {
	out := map[service.Key]*writtenService{}
	members := map[string]bool{}
	for _, g := range have.groups {
		for _, uuid := range g.LoadBalancer {
			members[uuid] = true
		}
	}
	for _, lb := range have.balancers {
		key := service.Key{Namespace: lb.ExternalIDs[ident.KeyNamespace], Name: lb.ExternalIDs[ident.KeyName]}
		w := out[key]
		if w == nil {
			w = &writtenService{balancers: map[string]*nbdb.LoadBalancer{}}
			out[key] = w
		}
		if w.balancers[lb.Name] != nil {
			t.add(ovsdb.Operation{Op: ovsdb.OperationDelete, Table: nbdb.LoadBalancerTable, Where: byUUID(lb.UUID)})
			continue
		}
		w.balancers[lb.Name] = lb
		if !members[lb.UUID] {
			t.joining = append(t.joining, ovsdb.UUID{GoUUID: lb.UUID})
		}
	}
	t.ServiceWriter.chassis = map[ident.ChassisName]bool{}
	for _, row := range have.variables {
		t.chassis[ident.ChassisName(row.Chassis)] = true
	}
	return out
}

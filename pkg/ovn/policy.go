package ovn

// Policy writer.
// In:   what NetworkPolicies come to (a PolicySource); of the live copy, the ports' UUIDs.
// Out:  Port_Group and Address_Set rows of ours with all their columns; the ACLs of these groups.
// It has no live copy of these tables: it knows what it has written, and reads them (Compare) when it cannot know.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// PolicySource has what NetworkPolicies come to (policy.Index). It is asked by the commit loop, while others change it.
type PolicySource interface {
	Take() policy.Changes
	Rows() policy.Rows
	GroupsOf(ident.PortName) []string
}

// PolicyWriter brings what a source says to the database.
type PolicyWriter struct {
	source PolicySource
	// again is called when there is something to write that no change has asked for.
	again func()

	mu sync.Mutex
	// waiting are members of groups that have no row yet, arrived those of them whose row the live copy has meanwhile.
	waiting, arrived map[ident.PortName]bool

	// The rest belongs to the commit loop.

	// known: what the database has is what the source has said, but for unsettled.
	known bool
	// acls are the UUIDs of the ACLs in the database.
	acls map[policy.ACLKey]string
	// unsettled were taken from the source, and are not known to be written.
	unsettled []*taken
}

// taken are changes, and the transaction that they were last made part of.
type taken struct {
	policy.Changes
	transaction int
}

// NewPolicyWriter returns a writer that writes nothing but the groups of new ports before its first Compare.
func (nb *NB) NewPolicyWriter(source PolicySource, again func()) *PolicyWriter {
	w := &PolicyWriter{source: source, again: again, waiting: map[ident.PortName]bool{}, arrived: map[ident.PortName]bool{}}
	nb.ovsdb.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc: func(_ string, row model.Model) {
			if p, ok := row.(*nbdb.LogicalSwitchPort); ok && w.arrive(ident.PortName(p.Name)) {
				again()
			}
		},
	})
	return w
}

// Pending writes what the source says since the last time, and puts ports that are new into their groups: those that earlier changes of the same transaction make too.
func (w *PolicyWriter) Pending() Change {
	return func(ctx context.Context, nb *NB) ([]step, error) {
		t := &writing{PolicyWriter: w, nb: nb}
		if w.known {
			if c := w.source.Take(); !c.Empty() {
				w.unsettled = append(w.unsettled, &taken{Changes: c})
			}
			for _, u := range slices.Clone(w.unsettled) {
				if err := t.take(ctx, u); err != nil {
					return nil, t.abandon(err)
				}
			}
		}
		if err := t.join(ctx); err != nil {
			return nil, t.abandon(err)
		}
		return t.steps, nil
	}
}

// Stale says that the database may have something else than was written.
func (w *PolicyWriter) Stale() Change {
	return func(context.Context, *NB) ([]step, error) {
		w.known = false
		return nil, nil
	}
}

// failed: what the database has is not known any more.
func (w *PolicyWriter) failed() {
	if w.known {
		w.known = false
		w.again()
	}
}

func (w *PolicyWriter) wait(port ident.PortName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[port] = true
}

// miss notes that a port which has a row was not put into its groups.
func (w *PolicyWriter) miss(port ident.PortName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[port], w.arrived[port] = true, true
	w.again()
}

// arrive notes that the live copy has a port, and says whether it was waited for.
func (w *PolicyWriter) arrive(port ident.PortName) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting[port] {
		w.arrived[port] = true
	}
	return w.waiting[port]
}

func (w *PolicyWriter) forget(port ident.PortName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, port)
	delete(w.arrived, port)
}

func (w *PolicyWriter) arrivals() []ident.PortName {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []ident.PortName
	for p := range w.arrived {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// settle takes u off the list when it is written. What the database refused, for what may be another's part of the transaction, stays for the next. Changes are
// written in the order in which they were taken; where one was left behind, all is compared.
func (w *PolicyWriter) settle(u *taken) func(ovsdb.OperationResult, error) {
	return func(_ ovsdb.OperationResult, err error) {
		if isRefused(err) {
			w.again()
			return
		}
		i := slices.Index(w.unsettled, u)
		if err != nil || i > 0 {
			w.failed()
		}
		if i >= 0 {
			w.unsettled = slices.Delete(w.unsettled, i, i+1)
		}
	}
}

// isRefused says that a transaction changed nothing. Of another error that is not known.
func isRefused(err error) bool { return errors.As(err, new(refused)) }

// writing makes the steps of one transaction.
type writing struct {
	*PolicyWriter
	nb    *NB
	steps []step
	// ports, if given, are the UUIDs of all ports, as read from the database; else the live copy says.
	ports map[ident.PortName]string
}

// abandon tells the steps so far that they are not sent.
func (t *writing) abandon(err error) error {
	settle(t.steps, nil, refused{err})
	return err
}

// uuid is a port's, empty if it has no row.
func (t *writing) uuid(ctx context.Context, port ident.PortName) (string, error) {
	if t.ports != nil {
		return t.ports[port], nil
	}
	have, err := t.nb.Port(ctx, port)
	if err != nil || have == nil {
		return "", err
	}
	return have.UUID, nil
}

// take adds the steps of changes, unless they are part of this transaction already.
func (t *writing) take(ctx context.Context, u *taken) error {
	if u.transaction == t.nb.transaction {
		return nil
	}
	u.transaction = t.nb.transaction
	before := len(t.steps)
	if err := t.changes(ctx, u.Changes); err != nil {
		return err
	}
	if len(t.steps) == before { // members that have no rows yet
		t.settle(u)(ovsdb.OperationResult{}, nil)
		return nil
	}
	t.finally(t.settle(u))
	return nil
}

// finally lets also be told what becomes of the last step, if there is any.
func (t *writing) finally(also func(ovsdb.OperationResult, error)) {
	if len(t.steps) == 0 {
		return
	}
	last := &t.steps[len(t.steps)-1]
	first := last.settled
	last.settled = func(r ovsdb.OperationResult, err error) {
		first(r, err)
		also(r, err)
	}
}

// changes adds steps in the order that policy.Changes wants.
func (t *writing) changes(ctx context.Context, c policy.Changes) error {
	for _, g := range c.Groups {
		if g.Create != nil {
			if err := t.create(g.Create); err != nil {
				return err
			}
		}
	}
	for _, s := range c.Sets {
		if s.Create != nil {
			if err := t.create(s.Create); err != nil {
				return err
			}
		}
	}
	for _, g := range c.Groups {
		if err := t.members(ctx, g); err != nil {
			return err
		}
	}
	for _, s := range c.Sets {
		t.mutate(nbdb.AddressSetTable, s.Name, "addresses", ovsdb.MutateOperationDelete, elements(s.Remove))
		t.mutate(nbdb.AddressSetTable, s.Name, "addresses", ovsdb.MutateOperationInsert, elements(s.Add))
	}
	if err := t.policyACLs(c.ACLs); err != nil {
		return err
	}
	for _, g := range c.Groups {
		if g.Delete {
			t.remove(nbdb.PortGroupTable, g.Name)
		}
	}
	for _, s := range c.Sets {
		if s.Delete {
			t.remove(nbdb.AddressSetTable, s.Name)
		}
	}
	return nil
}

// create makes a port group or an address set.
func (t *writing) create(row any) error {
	t.nb.named++
	switch r := row.(type) {
	case *nbdb.PortGroup:
		c := *r
		c.UUID = t.nb.namedUUID()
		return t.insert(&c)
	case *nbdb.AddressSet:
		c := *r
		c.UUID = t.nb.namedUUID()
		return t.insert(&c)
	default:
		return fmt.Errorf("%T is no row that policies have", row)
	}
}

func (t *writing) insert(row model.Model) error {
	ops, err := t.nb.ovsdb.Create(row)
	if err != nil {
		return fmt.Errorf("%T of policies: %w", row, err)
	}
	for _, op := range ops {
		t.steps = append(t.steps, step{op: op, settled: t.done})
	}
	return nil
}

// members changes who belongs to a group. A member that has no row yet is left to join.
func (t *writing) members(ctx context.Context, g policy.GroupChange) error {
	var add, remove []any
	for _, p := range g.Remove {
		uuid, err := t.uuid(ctx, p)
		if err != nil {
			return err
		}
		if uuid != "" { // one that is gone left its groups when it was deleted
			remove = append(remove, ovsdb.UUID{GoUUID: uuid})
		}
	}
	for _, p := range g.Add {
		if c := t.nb.created[p]; c != nil {
			if c.joined {
				add = append(add, ovsdb.UUID{GoUUID: c.uuid})
			}
			continue
		}
		uuid, err := t.uuid(ctx, p)
		if err != nil {
			return err
		}
		if uuid == "" {
			t.wait(p)
			if uuid, err = t.uuid(ctx, p); err != nil {
				return err
			}
			if uuid != "" { // it has come just before anybody waited for it
				t.arrive(p)
			}
			continue
		}
		add = append(add, ovsdb.UUID{GoUUID: uuid})
	}
	t.mutate(nbdb.PortGroupTable, g.Name, "ports", ovsdb.MutateOperationDelete, remove)
	t.mutate(nbdb.PortGroupTable, g.Name, "ports", ovsdb.MutateOperationInsert, add)
	return nil
}

// join puts ports into all their groups: those that this transaction makes, and those whose row has come after they had become members.
func (t *writing) join(ctx context.Context) error {
	refs := map[ident.PortName]string{}
	for _, p := range t.arrivals() {
		uuid, err := t.uuid(ctx, p)
		if err != nil {
			return err
		}
		if uuid == "" { // it is gone again
			t.forget(p)
			continue
		}
		refs[p] = uuid
	}
	for p, c := range t.nb.created {
		if !c.joined {
			refs[p] = c.uuid
			c.joined = true
		}
	}
	for p, uuid := range refs {
		t.forget(p)
		for _, g := range t.source.GroupsOf(p) {
			t.mutate(nbdb.PortGroupTable, g, "ports", ovsdb.MutateOperationInsert, []any{ovsdb.UUID{GoUUID: uuid}})
			t.steps[len(t.steps)-1].settled = func(r ovsdb.OperationResult, err error) {
				if isRefused(err) {
					t.miss(p)
				}
				t.one(r, err)
			}
		}
	}
	return nil
}

// mutate adds to or takes from a set of a row.
func (t *writing) mutate(table, name, column string, how ovsdb.Mutator, members []any) {
	if len(members) == 0 {
		return
	}
	t.steps = append(t.steps, step{settled: t.one, op: ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: table, Where: named(name), Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, how, ovsdb.OvsSet{GoSet: members})},
	}})
}

func (t *writing) remove(table, name string) {
	t.steps = append(t.steps, step{settled: t.done, op: ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: named(name)}})
}

// done is for what must merely be written.
func (w *PolicyWriter) done(_ ovsdb.OperationResult, err error) {
	if err != nil && !isRefused(err) {
		w.failed()
	}
}

// one is for what must be written to one row.
func (w *PolicyWriter) one(r ovsdb.OperationResult, err error) {
	if err == nil && r.Count != 1 {
		w.failed() // somebody has taken the row away
	}
	w.done(r, err)
}

func named(name string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, name)}
}

func elements(texts []string) []any {
	out := make([]any, len(texts))
	for i, t := range texts {
		out[i] = t
	}
	return out
}

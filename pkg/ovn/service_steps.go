package ovn

import (
	"errors"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// change is what a map column has, and what it shall have of the same keys.
type change struct {
	column     string
	have, want map[string]string
}

// mapping changes the keys of a map that are not as wanted, and no other.
func (t *serving) mapping(table string, where []ovsdb.Condition, c change) {
	var drop []any
	put := map[any]any{}
	for k, v := range c.have {
		if w, ok := c.want[k]; !ok || w != v {
			drop = append(drop, k)
		}
	}
	for k, v := range c.want {
		if h, ok := c.have[k]; !ok || h != v {
			put[k] = v
		}
	}
	var mutations []ovsdb.Mutation
	if len(drop) > 0 { // a key that is there is not replaced by an insert (RFC 7047, 5.1)
		mutations = append(mutations, *ovsdb.NewMutation(c.column, ovsdb.MutateOperationDelete, ovsdb.OvsSet{GoSet: drop}))
	}
	if len(put) > 0 {
		mutations = append(mutations, *ovsdb.NewMutation(c.column, ovsdb.MutateOperationInsert, ovsdb.OvsMap{GoMap: put}))
	}
	if len(mutations) > 0 {
		t.one(ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: where, Mutations: mutations})
	}
}

// mutate adds to or takes from a set of the row of that name.
func (t *serving) mutate(table, name, column string, how ovsdb.Mutator, members []any) {
	if len(members) > 0 {
		t.one(ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: named(name), Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, how, ovsdb.OvsSet{GoSet: members})}})
	}
}

func (t *serving) add(op ovsdb.Operation) { t.steps = append(t.steps, step{op: op, settled: t.done}) }

// one is add for what must be written to one row.
func (t *serving) one(op ovsdb.Operation) {
	t.steps = append(t.steps, step{op: op, settled: func(r ovsdb.OperationResult, err error) {
		if err == nil && r.Count != 1 {
			t.failed() // somebody has taken the row away
		}
		t.done(r, err)
	}})
}

// done is for what must merely be written.
func (w *ServiceWriter) done(_ ovsdb.OperationResult, err error) {
	if err != nil && (!isRefused(err) || errors.Is(err, errTwice)) {
		w.failed()
	}
}

// finally lets also be told what becomes of the last step.
func (t *serving) finally(also func(ovsdb.OperationResult, error)) {
	last := &t.steps[len(t.steps)-1]
	first := last.settled
	last.settled = func(r ovsdb.OperationResult, err error) {
		if first != nil {
			first(r, err)
		}
		also(r, err)
	}
}

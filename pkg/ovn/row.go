package ovn

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// kind tells the generic code about one table: T is its model.
type kind[T any] struct {
	table string
	// owned points to the columns that Godwit writes, external_ids among them. Of a map only the keys of the wanted row are ours.
	owned func(*T) []any
	uuid  func(*T) *string
	ids   func(*T) map[string]string
	label func(*T) string // how an error names the row
}

// parent is the row whose column holds the references to rows of a kind; without one a row of a non-root table is collected as garbage.
type parent struct{ table, column, name string }

// ensure makes the row as want says; have is the row as the live copy knows it, nil if it is absent.
func (k kind[T]) ensure(nb *NB, have, want *T, in *parent) ([]step, error) {
	if have == nil {
		return k.create(nb, want, in)
	}
	next := new(T)
	*next = *have
	nextCols, wantCols := k.owned(next), k.owned(want)
	for i := range wantCols {
		merge(nextCols[i], wantCols[i])
	}
	return k.update(nb, have, next)
}

// update writes the owned columns of next over those of have, unless they are equal, if the row still is as it was read.
func (k kind[T]) update(nb *NB, have, next *T) ([]step, error) {
	if k.ids(have)[ident.OwnerKey] == "" {
		return nil, fmt.Errorf("%s %s: %w: delete or rename it", k.table, k.label(have), ErrNotOurs)
	}
	haveCols, nextCols := k.owned(have), k.owned(next)
	if reflect.DeepEqual(haveCols, nextCols) {
		return nil, nil
	}
	zero := 0
	wait, err := nb.ovsdb.Where(any(have).(model.Model)).Wait(ovsdb.WaitConditionEqual, &zero, any(have).(model.Model), haveCols...)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.table, k.label(have), err)
	}
	update, err := nb.ovsdb.Where(any(have).(model.Model)).Update(any(next).(model.Model), nextCols...)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.table, k.label(have), err)
	}
	return append(guarded(wait, fmt.Errorf("%s %s: %w", k.table, k.label(have), ErrConflict)), plain(update)...), nil
}

func (k kind[T]) create(nb *NB, want *T, in *parent) ([]step, error) {
	row := new(T)
	*row = *want
	nb.named++
	*k.uuid(row) = nb.namedUUID()
	insert, err := nb.ovsdb.Create(any(row).(model.Model))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.table, k.label(want), err)
	}
	steps := plain(insert)
	if in == nil {
		return steps, nil
	}
	zero := 0
	where := []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, in.name)}
	return append(steps,
		step{
			op: ovsdb.Operation{Op: ovsdb.OperationWait, Table: in.table, Where: where, Columns: []string{"name"}, Until: "==",
				Rows: []ovsdb.Row{{"name": in.name}}, Timeout: &zero},
			fails: fmt.Errorf("%s %s: the %s %s that should hold it does not exist yet", k.table, k.label(want), in.table, in.name),
		},
		step{op: ovsdb.Operation{Op: ovsdb.OperationMutate, Table: in.table, Where: where,
			Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(in.column, ovsdb.MutateOperationInsert, reference(*k.uuid(row)))}}},
	), nil
}

// namedUUID is the latest that was given to a row (RFC 7047, 5.2.1).
func (nb *NB) namedUUID() string { return fmt.Sprintf("row%d", nb.named) }

// remove drops the reference to have from the row that holds it; the database then deletes have itself. Deleting the absent (nil) succeeds.
func (k kind[T]) remove(have *T, parentTable, column string) ([]step, error) {
	if have == nil {
		return nil, nil
	}
	if k.ids(have)[ident.OwnerKey] == "" {
		return nil, fmt.Errorf("%s %s: %w: left alone", k.table, k.label(have), ErrNotOurs)
	}
	ref := reference(*k.uuid(have))
	return plain([]ovsdb.Operation{{Op: ovsdb.OperationMutate, Table: parentTable,
		Where:     []ovsdb.Condition{ovsdb.NewCondition(column, ovsdb.ConditionIncludes, ref)},
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, ref)}}}), nil
}

func reference(uuid string) ovsdb.OvsSet {
	return ovsdb.OvsSet{GoSet: []any{ovsdb.UUID{GoUUID: uuid}}}
}

func plain(ops []ovsdb.Operation) []step { return guarded(ops, nil) }

func guarded(ops []ovsdb.Operation, fails error) []step {
	steps := make([]step, len(ops))
	for i, op := range ops {
		steps[i] = step{op: op, fails: fails}
	}
	return steps
}

// merge writes want into the column at dst. Both are pointers to the same type. A map keeps the keys that want does not name; a set is compared without
// regard to order. What is as wanted already stays the very same value.
func merge(dst, want any) {
	switch d := dst.(type) {
	case *map[string]string:
		next := maps.Clone(*d)
		if next == nil {
			next = map[string]string{}
		}
		maps.Copy(next, *want.(*map[string]string))
		if !maps.Equal(next, *d) {
			*d = next
		}
	case *[]string:
		w := *want.(*[]string)
		if !slices.Equal(slices.Sorted(slices.Values(*d)), slices.Sorted(slices.Values(w))) {
			*d = slices.Clone(w)
		}
	default:
		reflect.ValueOf(dst).Elem().Set(reflect.ValueOf(want).Elem())
	}
}

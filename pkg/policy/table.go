package policy

import (
	"cmp"
	"maps"
	"slices"
)

// table is the rows of one kind, port groups or address sets, with members of type M, and what changed in them since the last take.
type table[M comparable] struct {
	rows    map[string]*row[M]
	touched map[string]*row[M]
	compare func(a, b M) int
}

// row is a port group or an address set.
type row[M comparable] struct {
	about string
	// wanted: the row shall exist; existed: it did at the last take.
	wanted, existed bool
	// members counts why each is one: two classes can select a pod, and for a moment two pods can have an address.
	members map[M]int
	// before says of the members that were touched since the last take whether they were members then.
	before map[M]bool
}

func newTable[M comparable](compare func(a, b M) int) table[M] {
	return table[M]{rows: map[string]*row[M]{}, touched: map[string]*row[M]{}, compare: compare}
}

// want makes a row exist.
func (t table[M]) want(name, about string) {
	r := t.rows[name]
	if r == nil {
		r = &row[M]{about: about, members: map[M]int{}}
		t.rows[name] = r
	}
	r.wanted = true
	t.touched[name] = r
}

// drop lets a row cease to exist. Its members must have been removed.
func (t table[M]) drop(name string) {
	if r := t.rows[name]; r != nil {
		r.wanted = false
		t.touched[name] = r
	}
}

// add counts one reason more for m to be a member of a row that exists.
func (t table[M]) add(name string, m M) { t.count(name, m, 1) }

// remove counts one less.
func (t table[M]) remove(name string, m M) { t.count(name, m, -1) }

func (t table[M]) count(name string, m M, by int) {
	r := t.rows[name]
	if r == nil {
		return
	}
	if r.before == nil {
		r.before = map[M]bool{}
	}
	if _, known := r.before[m]; !known {
		r.before[m] = r.members[m] > 0
	}
	if r.members[m] += by; r.members[m] == 0 {
		delete(r.members, m)
	}
	t.touched[name] = r
}

// sorted are the members of a row.
func (t table[M]) sorted(name string) []M {
	r := t.rows[name]
	if r == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(r.members), t.compare)
}

// rowChange is what changed in a row since the last take.
type rowChange[M comparable] struct {
	name, about   string
	create, gone  bool
	added, absent []M
}

// take returns what changed since it was called last, sorted by name.
func (t table[M]) take() []rowChange[M] {
	var out []rowChange[M]
	for name, r := range t.touched {
		c := rowChange[M]{name: name, about: r.about, create: r.wanted && !r.existed, gone: !r.wanted && r.existed}
		for m, was := range r.before {
			switch is := r.members[m] > 0; {
			case is && !was:
				c.added = append(c.added, m)
			case was && !is && r.wanted:
				c.absent = append(c.absent, m)
			}
		}
		slices.SortFunc(c.added, t.compare)
		slices.SortFunc(c.absent, t.compare)
		if c.create || c.gone || len(c.added)+len(c.absent) > 0 {
			out = append(out, c)
		}
		r.existed, r.before = r.wanted, nil
		if !r.wanted {
			delete(t.rows, name)
		}
	}
	clear(t.touched)
	slices.SortFunc(out, func(a, b rowChange[M]) int { return cmp.Compare(a.name, b.name) })
	return out
}

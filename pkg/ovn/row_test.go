package ovn

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMerge(t *testing.T) {
	m := map[string]string{"theirs": "1", "ours": "old"}
	next := m
	if !merge(&next, &map[string]string{"ours": "new"}) {
		t.Error("a changed key is no change")
	}
	if d := cmp.Diff(map[string]string{"theirs": "1", "ours": "new"}, next); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if m["ours"] != "old" {
		t.Error("the row that was read has been changed")
	}
	if merge(&next, &map[string]string{"ours": "new"}) {
		t.Error("the same map is a change")
	}
	set := []string{"a", "b"}
	if merge(&set, &[]string{"b", "a"}) {
		t.Error("another order of a set is a change")
	}
	if !merge(&set, &[]string{"a"}) || len(set) != 1 {
		t.Errorf("set is %v, want [a]", set)
	}
	one, other := "1", "1"
	p, q := &one, &other
	if merge(&p, &q) {
		t.Error("equal optional values are a change")
	}
	n, want := 1, 2
	if !merge(&n, &want) || n != 2 {
		t.Errorf("number is %d, want 2", n)
	}
}

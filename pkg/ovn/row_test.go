package ovn

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMerge(t *testing.T) {
	m := map[string]string{"theirs": "1", "ours": "old"}
	next := m
	merge(&next, &map[string]string{"ours": "new"})
	if d := cmp.Diff(map[string]string{"theirs": "1", "ours": "new"}, next); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if m["ours"] != "old" {
		t.Error("the row that was read has been changed")
	}
	var absent map[string]string
	if merge(&absent, &map[string]string{}); absent != nil {
		t.Error("an absent map that shall have no key has become another value")
	}
	set := []string{"a", "b"}
	if merge(&set, &[]string{"b", "a"}); set[0] != "a" {
		t.Error("another order of a set is a change")
	}
	if merge(&set, &[]string{"a"}); len(set) != 1 {
		t.Errorf("set is %v, want [a]", set)
	}
	one, other := "1", "2"
	p, q := &one, &other
	if merge(&p, &q); *p != "2" {
		t.Errorf("optional value is %s, want 2", *p)
	}
	n, want := 1, 2
	if merge(&n, &want); n != 2 {
		t.Errorf("number is %d, want 2", n)
	}
}

func TestPortKeys(t *testing.T) {
	have := map[string]string{"requested-chassis": "a,b", "activation-strategy": "rarp", "theirs": "1"}
	for name, c := range map[string]struct {
		keys map[string]string
		want bool
	}{
		"as read":                  {map[string]string{"requested-chassis": "a,b"}, true},
		"another value":            {map[string]string{"requested-chassis": "a"}, false},
		"was absent":               {map[string]string{"other": ""}, true},
		"was absent, and appeared": {map[string]string{"activation-strategy": ""}, false},
	} {
		if got := says(have, c.keys); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	next := with(have, map[string]string{"requested-chassis": "b", "activation-strategy": ""})
	if d := cmp.Diff(map[string]string{"requested-chassis": "b", "theirs": "1"}, next); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if have["activation-strategy"] != "rarp" {
		t.Error("the row that was read has been changed")
	}
}

package main

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/bench/central"
)

// The policies are as many as were asked for, none has a problem, and a pod belongs to rows of each kind: otherwise the figures would say nothing.
func TestWorld(t *testing.T) {
	all, spaces := newPolicies(100), namespaces(100)
	if len(all) != 100 || len(spaces) != 12 {
		t.Fatalf("%d policies in %d namespaces, want 100 in 10 and two more", len(all), len(spaces))
	}
	index := policy.Fill(policy.Config{}, policy.Snapshot{Policies: all})
	for _, np := range all {
		if p := index.Problems(policy.Key{Namespace: np.Namespace, Name: np.Name}); len(p) > 0 {
			t.Errorf("%s/%s: %v", np.Namespace, np.Name, p)
		}
	}
	first, second := placesOf(all, spaces, newPod(namespaceName(0), "x", "", firstApp)), placesOf(all, spaces, newPod(namespaceName(0), "x", "", secondApp))
	for _, p := range []places{first, second} {
		if len(p.groups) != 4 || len(p.sets[0]) != 2 || len(p.sets[1]) != 2 {
			t.Errorf("places: %+v, want both isolation groups, two of selections, and two sets in each family", p)
		}
	}
	if reflect.DeepEqual(first, second) {
		t.Errorf("other labels, the same places: %+v", first)
	}
	if none := placesOf(nil, spaces, newPod(namespaceName(0), "x", "", firstApp)); len(none.groups)+len(none.sets[0])+len(none.sets[1]) > 0 {
		t.Errorf("places without policies: %+v", none)
	}
	if got, more := countACLs(nil, 5), countACLs(all, 5); got < 5 || more <= got+100 {
		t.Errorf("%d ACLs without policies and %d with them", got, more)
	}
}

// A member's rows are those that it was seen to come to and not to leave; a set that northd makes of a group is none of them.
func TestMembers(t *testing.T) {
	m := newMembers()
	m.change(nil, &setRow{Name: "godwit_p_a_4", Addresses: []string{"10.0.0.1", "10.0.0.2"}})
	m.change(nil, &setRow{Name: "godwit_s_a_ip4", Addresses: []string{"10.0.0.1"}})
	m.change(&setRow{Name: "godwit_p_a_4", Addresses: []string{"10.0.0.1", "10.0.0.2"}}, &setRow{Name: "godwit_p_a_4", Addresses: []string{"10.0.0.1"}})
	m.change(nil, &groupRow{Name: "7_godwit_s_a", Ports: []string{"pod/ns/x/default"}})
	m.change(nil, &central.PortRow{Name: "pod/ns/x/default"})
	m.change(nil, &central.PortRow{Name: "node/n1"})
	m.change(nil, &aclRow{})
	m.change(&aclRow{}, &aclRow{})
	for member, rows := range map[string][]string{"10.0.0.1": {"godwit_p_a_4"}, "10.0.0.2": nil, "pod/ns/x/default": {"godwit_s_a", thePort}} {
		if at, ok := m.exactly(member, rows); !ok || at.IsZero() {
			t.Errorf("%s: %v, want %v", member, m.rows[member], rows)
		}
	}
	if _, ok := m.exactly("10.0.0.1", nil); ok {
		t.Error("a member of a set is said to be in none")
	}
	if m.size("godwit_p_a_4") != 1 || m.countOfPods() != 1 || m.countOfACLs() != 1 {
		t.Errorf("size %d, pods %d, ACLs %d, want 1 of each", m.size("godwit_p_a_4"), m.countOfPods(), m.countOfACLs())
	}
	m.change(&central.PortRow{Name: "pod/ns/x/default"}, nil)
	m.change(&aclRow{}, nil)
	if m.countOfPods() != 0 || m.countOfACLs() != 0 {
		t.Errorf("pods %d, ACLs %d after they have gone", m.countOfPods(), m.countOfACLs())
	}
}

func TestOptions(t *testing.T) {
	t.Setenv("COUNT", "100")
	c, err := options(nil)
	c.log = nil
	if want := (config{policies: 100, pods: 1000, nodes: 20, samples: 20, log: (*slog.Logger)(nil)}); err != nil || c != want {
		t.Errorf("COUNT=100: %+v (%v), want %+v", c, err, want)
	}
	for _, args := range [][]string{{"--policies=7"}, {"--pods=11"}, {"--samples=0"}, {"--policies=0"}} {
		if _, err := options(args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	t.Setenv("COUNT", "many")
	if _, err := options(nil); err == nil || !strings.Contains(err.Error(), "COUNT=many") {
		t.Errorf("COUNT=many: %v", err)
	}
}

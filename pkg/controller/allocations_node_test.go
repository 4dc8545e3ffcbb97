package controller

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
)

// nodesOf is a cache with some Nodes.
type nodesOf struct {
	client.Client
	nodes []corev1.Node
}

func (a nodesOf) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if nodes, ok := list.(*corev1.NodeList); ok {
		nodes.Items = a.nodes
	}
	return nil
}

// joined makes Nodes with annotations, in order of their age.
func joined(names []string, joins map[string]v1alpha1.Join) nodesOf {
	var api nodesOf
	for i, name := range names {
		api.nodes = append(api.nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: name, CreationTimestamp: metav1.Unix(int64(i), 0), Annotations: map[string]string{v1alpha1.JoinAnnotation: joins[name].Text()},
		}})
	}
	return api
}

// A node has the same two places after a restart. One that an older controller annotated keeps its first and gets a second.
func TestJoinAfterRestart(t *testing.T) {
	spec := mustSpec(t, "100.64.0.0/28")
	before := newAllocations(nodesOf{}, nil, spec, &queues{})
	joins, names := map[string]v1alpha1.Join{}, []string{"one", "two", "three"}
	for _, name := range names {
		join, err := before.joinNode(name, v1alpha1.Join{})
		if err != nil {
			t.Fatal(err)
		}
		if len(join.Clients) != 1 || join.Clients[0] == join.IPs[0] {
			t.Errorf("%s: ips %v, clients %v, want an address of each", name, join.IPs, join.Clients)
		}
		if _, err := v1alpha1.ParseJoin(join.Text()); err != nil {
			t.Error(err)
		}
		joins[name] = join
	}
	want := joins["two"]
	older := joins["three"]
	older.Clients = nil
	joins["three"] = older

	after := newAllocations(joined(names, joins), nil, spec, &queues{})
	if err := after.restoreJoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	upgraded, err := after.joinNode("three", older) // the first to ask takes nothing from the others
	if err != nil {
		t.Fatal(err)
	}
	if upgraded.IPs[0] != older.IPs[0] || len(upgraded.Clients) != 1 {
		t.Errorf("%+v became %+v, want the same address and a second", older, upgraded)
	}
	if got, err := after.joinNode("two", want); err != nil || got.Text() != want.Text() {
		t.Errorf("%s became %s (%v)", want.Text(), got.Text(), err)
	}
	used, _ := after.join.Usage()
	if after.releaseNode("two"); used != 6 {
		t.Errorf("three nodes have %d addresses, want 6", used)
	}
	if used, _ = after.join.Usage(); used != 4 {
		t.Errorf("two nodes have %d addresses, want 4", used)
	}
}

// Of two nodes that claim one address the older one has it, whether it is a first or a second.
func TestJoinTwice(t *testing.T) {
	spec := mustSpec(t, "100.64.0.0/28")
	a := newAllocations(nodesOf{}, nil, spec, &queues{})
	one, err := a.joinNode("one", v1alpha1.Join{})
	if err != nil {
		t.Fatal(err)
	}
	thief := one
	thief.IPs, thief.Clients = one.Clients, one.IPs
	names := []string{"one", "two"}
	after := newAllocations(joined(names, map[string]v1alpha1.Join{"one": one, "two": thief}), nil, spec, &queues{})
	if err := after.restoreJoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	two, err := after.joinNode("two", thief)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := after.joinNode("one", one); err != nil || again.Text() != one.Text() {
		t.Errorf("%s became %s (%v)", one.Text(), again.Text(), err)
	}
	for _, ip := range addrsOf(append(two.IPs, two.Clients...)) {
		if ip == one.IPs[0].Addr() || ip == one.Clients[0].Addr() {
			t.Errorf("two has %s, which is one's", ip)
		}
	}
}

// A node that was there when the join network is too small for second addresses goes on without.
func TestJoinNetworkTooSmall(t *testing.T) {
	a := newAllocations(nodesOf{}, nil, mustSpec(t, "100.64.0.0/30"), &queues{}) // the router and one node
	join, err := a.joinNode("one", v1alpha1.Join{})
	if !errors.Is(err, ipam.ErrFull) {
		t.Errorf("error %v, want %v", err, ipam.ErrFull)
	}
	if d := cmp.Diff([]string{"100.64.0.2/30"}, textsOf(join)); d != "" || join.Clients != nil {
		t.Errorf("clients %v, ips (-want +got)\n%s", join.Clients, d)
	}
}

func textsOf(j v1alpha1.Join) (out []string) {
	for _, ip := range j.IPs {
		out = append(out, ip.String())
	}
	return out
}

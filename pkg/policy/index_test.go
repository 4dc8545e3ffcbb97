package policy

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// database is what somebody has who applies every Changes and nothing else. It is strict: what is added must be absent, what is removed must be there.
type database struct {
	t      *testing.T
	groups map[string]map[ident.PortName]bool
	sets   map[string]map[string]bool
	acls   map[string]ACL
}

func newDatabase(t *testing.T) *database {
	return &database{t: t, groups: map[string]map[ident.PortName]bool{}, sets: map[string]map[string]bool{}, acls: map[string]ACL{}}
}

// apply returns the number of members that came or went.
func (d *database) apply(c Changes) (members int) {
	d.t.Helper()
	for _, g := range c.Groups {
		members += applyRow(d.t, d.groups, rowEvent[ident.PortName]{g.Name, g.Create != nil, g.Delete, g.Add, g.Remove})
	}
	for _, s := range c.Sets {
		members += applyRow(d.t, d.sets, rowEvent[string]{s.Name, s.Create != nil, s.Delete, s.Add, s.Remove})
	}
	for _, a := range c.ACLs {
		key := string(a.Key())
		have, ok := d.acls[key]
		switch {
		case !a.Delete && ok && cmp.Equal(have.Row, a.Row), a.Delete && !ok:
			d.t.Fatalf("ACL %s: nothing changes by %+v", key, a)
		case a.Delete:
			delete(d.acls, key)
		default:
			d.acls[key] = a.ACL
		}
	}
	return members
}

type rowEvent[M comparable] struct {
	name           string
	create, gone   bool
	added, removed []M
}

func applyRow[M comparable](t *testing.T, rows map[string]map[M]bool, e rowEvent[M]) int {
	t.Helper()
	if _, ok := rows[e.name]; ok == e.create || e.create && e.gone {
		t.Fatalf("%s: there already is %v, and the change is %+v", e.name, ok, e)
	}
	if e.create {
		rows[e.name] = map[M]bool{}
	}
	for _, m := range e.added {
		if rows[e.name][m] {
			t.Fatalf("%s has %v already", e.name, m)
		}
		rows[e.name][m] = true
	}
	for _, m := range e.removed {
		if !rows[e.name][m] {
			t.Fatalf("%s has no %v to remove", e.name, m)
		}
		delete(rows[e.name], m)
	}
	if e.gone {
		delete(rows, e.name)
	}
	return len(e.added) + len(e.removed)
}

// rows are what is in the database, as renderPlain writes it.
func (d *database) rows() string {
	var out Rows
	for _, name := range slices.Sorted(maps.Keys(d.groups)) {
		out.Groups = append(out.Groups, Group{Row: groupRow(name, ""), Ports: slices.Sorted(maps.Keys(d.groups[name]))})
	}
	for _, name := range slices.Sorted(maps.Keys(d.sets)) {
		row := setRow(name, "")
		row.Addresses = slices.Sorted(maps.Keys(d.sets[name]))
		out.Sets = append(out.Sets, row)
	}
	out.ACLs = slices.Collect(maps.Values(d.acls))
	sortACLs(out.ACLs)
	return renderPlain(out)
}

// renderPlain is render without descriptions, and with addresses in the order of their text.
func renderPlain(rows Rows) string {
	plain := Rows{ACLs: rows.ACLs}
	for _, g := range rows.Groups {
		plain.Groups = append(plain.Groups, Group{Row: groupRow(g.Row.Name, ""), Ports: g.Ports})
	}
	for _, s := range rows.Sets {
		row := setRow(s.Name, "")
		row.Addresses = slices.Sorted(slices.Values(s.Addresses))
		plain.Sets = append(plain.Sets, row)
	}
	return render(plain)
}

// TestPolicyIncremental tells an Index of one random cluster after the other as events in random order, and holds what comes of it against a compilation from nothing:
// the rows, what Changes have made of an empty database, and that nothing is left in the Index when everything is gone.
func TestPolicyIncremental(t *testing.T) {
	s := randomSeed(t)
	for i := range *cases / 20 {
		i += *first
		r := rand.New(rand.NewPCG(s, uint64(i)))
		x, db := New(Config{Join: join}), newDatabase(t)
		var before *world
		for step := range 4 {
			w := newWorld(r)
			if step == 3 {
				w = &world{r: r} // nothing at all
			}
			events := transition(x, before, w)
			r.Shuffle(len(events), func(a, b int) { events[a], events[b] = events[b], events[a] })
			for _, e := range events {
				if e(); r.IntN(3) == 0 {
					db.apply(x.Take())
				}
			}
			db.apply(x.Take())
			want := Compile(Config{Join: join}, w.snapshot())
			for who, got := range map[string]string{"Rows": renderPlain(x.Rows()), "Take": db.rows()} {
				if d := cmp.Diff(renderPlain(want), got); d != "" {
					t.Fatalf("-seed %d -first %d: step %d: %s (-from nothing +by events)\n%s", s, i, step, who, d)
				}
			}
			for _, p := range w.pods {
				checkGroups(t, x, p.Port, want)
			}
			if c := x.Take(); !c.Empty() {
				t.Fatalf("-seed %d -first %d: changes without events: %+v", s, i, c)
			}
			before = w
		}
		if n := len(x.views) + len(x.classes) + len(x.blocks) + len(x.wide) + len(x.pods) + len(x.namespaces) + len(x.policies) + len(x.hosts) + len(x.moving); n != 0 {
			t.Fatalf("-seed %d -first %d: the index still has %+v", s, i, x)
		}
	}
}

func checkGroups(t *testing.T, x *Index, port ident.PortName, rows Rows) {
	t.Helper()
	var want []string
	for _, g := range rows.Groups {
		if slices.Contains(g.Ports, port) {
			want = append(want, g.Row.Name)
		}
	}
	if d := cmp.Diff(want, x.GroupsOf(port)); d != "" {
		t.Fatalf("groups of %s (-want +got)\n%s", port, d)
	}
}

// transition are the events that make the next cluster of one, some of them twice.
func transition(x *Index, before, next *world) []func() {
	var out []func()
	s, was := next.snapshot(), Snapshot{}
	if before != nil {
		was = before.snapshot()
	}
	for name := range was.Namespaces {
		if _, stays := s.Namespaces[name]; !stays {
			out = append(out, func() { x.DeleteNamespace(name) })
		}
	}
	for name, labels := range s.Namespaces {
		out = append(out, func() { x.SetNamespace(name, labels) })
	}
	for _, p := range was.Pods {
		if !slices.ContainsFunc(s.Pods, func(q Pod) bool { return q.Port == p.Port }) {
			out = append(out, func() { x.DeletePod(p.Port) })
		}
	}
	for _, p := range s.Pods {
		out = append(out, func() { x.SetPod(p) }, func() { x.SetPod(p) })
	}
	for _, h := range was.Hosts {
		if !slices.ContainsFunc(s.Hosts, func(g Host) bool { return g.Node == h.Node }) {
			out = append(out, func() { x.DeleteHost(h.Node) })
		}
	}
	for _, h := range s.Hosts {
		out = append(out, func() { x.SetHost(h) })
	}
	for _, p := range was.Moving {
		if !slices.Contains(s.Moving, p) {
			out = append(out, func() { x.StopMoving(p) })
		}
	}
	for _, p := range s.Moving {
		out = append(out, func() { x.StartMoving(p) }, func() { x.StartMoving(p) })
	}
	key := func(np *networkingv1.NetworkPolicy) Key { return Key{np.Namespace, np.Name} }
	for _, np := range was.Policies {
		if !slices.ContainsFunc(s.Policies, func(o *networkingv1.NetworkPolicy) bool { return key(o) == key(np) }) {
			out = append(out, func() { x.DeletePolicy(key(np)) })
		}
	}
	for _, np := range s.Policies {
		out = append(out, func() { x.SetPolicy(np) }, func() { x.SetPolicy(np) })
	}
	return out
}

// Isolates is what the rows come to: a port is in the groups of the directions that some policy isolates it in.
func TestIsolates(t *testing.T) {
	in, out := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	web := metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	for name, test := range map[string]struct {
		spec    networkingv1.NetworkPolicySpec
		in, out bool
	}{
		"all":            {networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{in, out}}, true, true},
		"egress":         {networkingv1.NetworkPolicySpec{PodSelector: web, PolicyTypes: []networkingv1.PolicyType{out}}, false, true},
		"by default":     {networkingv1.NetworkPolicySpec{PodSelector: web}, true, false},
		"with egress":    {networkingv1.NetworkPolicySpec{PodSelector: web, Egress: []networkingv1.NetworkPolicyEgressRule{{}}}, true, true},
		"others":         {networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}, false, false},
		"what is broken": {networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}, true, false},
	} {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: test.spec}
		labels := map[string]string{"app": "web"}
		gotIn, gotOut := Isolates(np, labels)
		if gotIn != test.in || gotOut != test.out {
			t.Errorf("%s: ingress %t, egress %t, want %t, %t", name, gotIn, gotOut, test.in, test.out)
		}
		x := Fill(Config{}, Snapshot{Policies: []*networkingv1.NetworkPolicy{np}, Pods: []Pod{{Port: "p", Namespace: "shop", Labels: labels}}})
		groups := x.GroupsOf("p")
		if slices.Contains(groups, isolationGroup(ingress)) != test.in || slices.Contains(groups, isolationGroup(egress)) != test.out {
			t.Errorf("%s: the port is in %v", name, groups)
		}
	}
}

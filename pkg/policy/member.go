package policy

import (
	"net/netip"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// namespace is one that the index knows, or that something is in or about.
type namespace struct {
	standing
	pods map[*pod]struct{}
	// finder has the classes that are about this namespace alone.
	finder finder
	// wide are those of the index whose namespaceSelector selects it.
	wide map[*wide]struct{}
}

// wide is the classes that one namespaceSelector is part of. It exists while there is one, and has them once for all namespaces: a class can have thousands of labels to be found by.
type wide struct {
	namespaces selector
	classes    map[*class]struct{}
	finder     finder
}

// standing is what namespaceSelectors see of a namespace.
type standing struct {
	// known: it exists. Before that no namespaceSelector selects it.
	known  bool
	labels map[string]string
}

func (s standing) matches(namespaces selector) bool { return s.known && namespaces.matches(s.labels) }

func (x *Index) namespace(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{pods: map[*pod]struct{}{}, finder: newFinder(), wide: map[*wide]struct{}{}}
		x.namespaces[name] = n
	}
	return n
}

// forgetNamespace drops what the index knows of a namespace if that is nothing.
func (x *Index) forgetNamespace(name string) {
	if n := x.namespaces[name]; n != nil && !n.known && len(n.pods) == 0 && n.finder.empty() {
		delete(x.namespaces, name)
	}
}

// SetNamespace adds a namespace, or changes its labels.
func (x *Index) SetNamespace(name string, labels map[string]string) {
	n := x.namespace(name)
	x.relabel(n, standing{known: true, labels: labels})
}

// DeleteNamespace removes a namespace. Its pods and policies stay until they are deleted too.
func (x *Index) DeleteNamespace(name string) {
	x.relabel(x.namespace(name), standing{})
	x.forgetNamespace(name)
}

// relabel moves a namespace out of, and into, the classes whose namespaceSelector sees a difference.
func (x *Index) relabel(n *namespace, now standing) {
	n.standing = now
	for _, w := range x.wide {
		_, was := n.wide[w]
		is := now.matches(w.namespaces)
		switch {
		case is && !was:
			n.wide[w] = struct{}{}
			for c := range w.classes {
				x.enter(n, c)
			}
		case was && !is:
			delete(n.wide, w)
			for c := range w.classes {
				x.leave(n, c)
			}
		}
	}
}

// enter makes the pods of a namespace members of a class that has come to be about it.
func (x *Index) enter(n *namespace, c *class) {
	for p := range n.pods {
		if c.spec.matches(&p.Pod) {
			x.join(p, c)
		}
	}
}

// leave is the reverse of enter.
func (x *Index) leave(n *namespace, c *class) {
	for p := range n.pods {
		if _, in := p.classes[c]; in {
			x.part(p, c)
		}
	}
}

// SetPod adds a pod, or replaces the one of its port.
func (x *Index) SetPod(p Pod) {
	x.DeletePod(p.Port)
	if p.HostNetwork {
		return
	}
	n := x.namespace(p.Namespace)
	one := &pod{Pod: p, classes: map[*class]struct{}{}}
	x.pods[p.Port], n.pods[one] = one, struct{}{}
	join := func(c *class) {
		if c.spec.matches(&one.Pod) {
			x.join(one, c)
		}
	}
	n.finder.candidates(p.Labels, join)
	for w := range n.wide {
		w.finder.candidates(p.Labels, join)
	}
}

// DeletePod removes a pod.
func (x *Index) DeletePod(port ident.PortName) {
	p := x.pods[port]
	if p == nil {
		return
	}
	for c := range p.classes {
		x.part(p, c)
	}
	delete(x.pods, port)
	delete(x.namespaces[p.Namespace].pods, p)
	x.forgetNamespace(p.Namespace)
}

// join makes a pod a member of a class.
func (x *Index) join(p *pod, c *class) {
	p.classes[c], c.members[p] = struct{}{}, struct{}{}
	for v := range c.views {
		x.show(v, c, p)
	}
}

// part is the reverse of join.
func (x *Index) part(p *pod, c *class) {
	delete(p.classes, c)
	delete(c.members, p)
	for v := range c.views {
		x.hide(v, c, p)
	}
}

// show writes a member of a class to the rows of a view.
func (x *Index) show(v *view, c *class, p *pod) {
	for _, n := range v.numbers(&p.Pod) {
		if v.members[n]++; v.members[n] == 1 && v.port != (namedPort{}) {
			x.wantRows(v, n)
			x.outdate(v)
		}
		x.eachMember(v, c, member{p, n}, x.groups.add, x.sets.add)
	}
}

// hide is the reverse of show.
func (x *Index) hide(v *view, c *class, p *pod) {
	for _, n := range v.numbers(&p.Pod) {
		x.eachMember(v, c, member{p, n}, x.groups.remove, x.sets.remove)
		if v.members[n]--; v.members[n] == 0 {
			delete(v.members, n)
			if v.port != (namedPort{}) {
				x.dropRows(v, n)
				x.outdate(v)
			}
		}
	}
}

// member is a pod at one number of a view's port.
type member struct {
	*pod
	number int32
}

// eachMember tells what a pod is in a view's rows: its port, or its addresses.
func (x *Index) eachMember(v *view, c *class, m member, port func(string, ident.PortName), addr func(string, netip.Prefix)) {
	if v.form == portGroup {
		for _, row := range x.groupsOf(v, m) {
			port(row, m.Port)
		}
		return
	}
	row := v.row(m.number)
	for _, a := range m.IPs {
		if !c.spec.has(a) {
			continue
		}
		for _, f := range families {
			if f.has(a) {
				addr(row+f.suffix, host(a))
			}
		}
	}
}

// groupsOf are the port groups of a view in which a pod is.
func (x *Index) groupsOf(v *view, m member) []string {
	out := []string{v.row(m.number)}
	if _, moving := x.moving[m.Port]; moving && v.isolates {
		out = append(out, handoverGroup(v.name))
	}
	return out
}

// outdate marks the policies of a view: their ACLs depend on it.
func (x *Index) outdate(v *view) {
	for p := range v.users {
		x.stale[owner{policy: p.parsed.key}] = struct{}{}
	}
}

package policy

import (
	"net/netip"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// namespace is one that the index knows, or that something is in or about.
type namespace struct {
	standing
	pods map[*pod]struct{}
	// finder has the classes that are about the namespace.
	finder finder
}

// standing is what namespaceSelectors see of a namespace.
type standing struct {
	// known: it exists. Before that no namespaceSelector selects it.
	known  bool
	labels map[string]string
}

func (s standing) matches(c classSpec) bool { return s.known && c.namespaces.matches(s.labels) }

func (x *Index) namespace(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{pods: map[*pod]struct{}{}, finder: newFinder()}
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
	before := n.standing
	n.standing = now
	for _, classes := range x.wide {
		for c := range classes {
			was, is := before.matches(c.spec), now.matches(c.spec)
			if was == is {
				break // and so it is for all of them: they have the same selector
			}
			if is {
				x.enter(n, c)
			} else {
				x.leave(n, c)
			}
		}
	}
}

// enter makes a class be about a namespace.
func (x *Index) enter(n *namespace, c *class) {
	n.finder.insert(c)
	for p := range n.pods {
		if c.spec.matches(&p.Pod) {
			x.join(p, c)
		}
	}
}

// leave is the reverse of enter.
func (x *Index) leave(n *namespace, c *class) {
	n.finder.remove(c)
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
	n.finder.candidates(p.Labels, func(c *class) {
		if c.spec.matches(&one.Pod) {
			x.join(one, c)
		}
	})
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

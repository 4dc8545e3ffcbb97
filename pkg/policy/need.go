package policy

import "net/netip"

// What policies need comes into being with the first and goes with the last that needs it: views, the classes that views show, and blocks.

// acquire makes everything exist that a policy needs.
func (x *Index) acquire(p *policy) {
	for _, s := range p.parsed.views() {
		x.acquireView(p, s)
	}
	for _, s := range p.parsed.blocks() {
		b := x.blocks[s.name]
		if b == nil {
			b = &block{blockSpec: s, users: map[*policy]int{}}
			x.blocks[s.name] = b
			x.openBlock(b)
		}
		b.users[p]++
	}
}

// release lets everything go that nobody but this policy needs.
func (x *Index) release(p *policy) {
	for _, s := range p.parsed.views() {
		v := x.views[s.key()]
		if decrement(v.users, p); len(v.users) == 0 {
			x.closeView(v)
		}
	}
	for _, s := range p.parsed.blocks() {
		b := x.blocks[s.name]
		if decrement(b.users, p); len(b.users) == 0 {
			x.closeBlock(b)
		}
	}
}

func decrement(users map[*policy]int, p *policy) {
	if users[p]--; users[p] == 0 {
		delete(users, p)
	}
}

func (x *Index) acquireView(p *policy, s viewSpec) {
	v := x.views[s.key()]
	if v == nil {
		v = &view{viewSpec: s, users: map[*policy]int{}, members: map[int32]int{}}
		x.views[s.key()] = v
		if v.port == (namedPort{}) {
			x.wantRows(v, 0)
		}
		for _, spec := range s.list.classes {
			c := x.class(spec)
			v.classes = append(v.classes, c)
			c.views[v] = struct{}{}
			for m := range c.members {
				x.show(v, c, m)
			}
		}
	}
	v.users[p]++
}

func (x *Index) closeView(v *view) {
	for _, c := range v.classes {
		for m := range c.members {
			x.hide(v, c, m)
		}
		delete(c.views, v)
		if len(c.views) == 0 {
			x.closeClass(c)
		}
	}
	if v.port == (namedPort{}) {
		x.dropRows(v, 0)
	}
	delete(x.views, v.key())
}

// wantRows makes a view's rows for a number exist. The isolation groups always do.
func (x *Index) wantRows(v *view, number int32) {
	row, about := v.row(number), v.about(number)
	switch {
	case v.isolates:
	case v.form == portGroup:
		x.groups.want(row, about)
	default:
		for _, f := range families {
			x.sets.want(row+f.suffix, about)
		}
	}
}

func (x *Index) dropRows(v *view, number int32) {
	row := v.row(number)
	switch {
	case v.isolates:
	case v.form == portGroup:
		x.groups.drop(row)
	default:
		for _, f := range families {
			x.sets.drop(row + f.suffix)
		}
	}
}

// class returns the class of a spec, which it makes, with its members, if there is none.
func (x *Index) class(spec classSpec) *class {
	c := x.classes[spec.text]
	if c != nil {
		return c
	}
	c = &class{spec: spec, members: map[*pod]struct{}{}, views: map[*view]struct{}{}}
	x.classes[spec.text] = c
	if spec.namespace != "" {
		n := x.namespace(spec.namespace)
		n.finder.insert(c)
		x.enter(n, c)
		return c
	}
	w := x.openWide(spec.namespaces)
	w.classes[c] = struct{}{}
	w.finder.insert(c)
	for _, n := range x.namespaces {
		if _, in := n.wide[w]; in {
			x.enter(n, c)
		}
	}
	return c
}

// openWide returns the classes of a namespaceSelector, which it makes, without any, if there is none.
func (x *Index) openWide(namespaces selector) *wide {
	w := x.wide[namespaces.text]
	if w != nil {
		return w
	}
	w = &wide{namespaces: namespaces, classes: map[*class]struct{}{}, finder: newFinder()}
	x.wide[namespaces.text] = w
	for _, n := range x.namespaces {
		if n.matches(namespaces) {
			n.wide[w] = struct{}{}
		}
	}
	return w
}

func (x *Index) closeClass(c *class) {
	delete(x.classes, c.spec.text)
	if c.spec.namespace != "" {
		n := x.namespace(c.spec.namespace)
		n.finder.remove(c)
		x.leave(n, c)
		x.forgetNamespace(c.spec.namespace)
		return
	}
	w := x.wide[c.spec.namespaces.text]
	delete(w.classes, c)
	w.finder.remove(c)
	for _, n := range x.namespaces {
		if _, in := n.wide[w]; !in {
			continue
		}
		x.leave(n, c)
		if len(w.classes) == 0 {
			delete(n.wide, w)
		}
	}
	if len(w.classes) == 0 {
		delete(x.wide, c.spec.namespaces.text)
	}
}

func (x *Index) openBlock(b *block) {
	for _, name := range b.sets() {
		if name != "" {
			x.sets.want(name, "ipBlocks "+blockText(b.prefixes))
		}
	}
	x.eachPrefix(b, x.sets.add)
	for _, h := range x.hosts {
		x.countHost(b, h, x.sets.add)
	}
}

func (x *Index) closeBlock(b *block) {
	x.eachPrefix(b, x.sets.remove)
	for _, h := range x.hosts {
		x.countHost(b, h, x.sets.remove)
	}
	for _, name := range b.sets() {
		x.sets.drop(name)
	}
	delete(x.blocks, b.name)
}

// eachPrefix tells what a block's sets have in them besides the nodes' join addresses: the join network is not meant by its own addresses.
func (x *Index) eachPrefix(b *block, do func(set string, p netip.Prefix)) {
	left := cut(b.prefixes, x.joinNets)
	for _, f := range families {
		for _, p := range left {
			if f.has(p.Addr()) {
				do(b.name+f.suffix, p)
			}
		}
	}
}

// countHost adds or removes the join addresses of a node that a block holds.
func (x *Index) countHost(b *block, h Host, do func(set string, p netip.Prefix)) {
	for _, a := range h.within(b.prefixes) {
		for _, f := range families {
			if f.has(a) {
				do(b.name+f.suffix, host(a))
			}
		}
	}
}

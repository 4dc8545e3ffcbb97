package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// ACL is an ACL row and the port group that holds it. A policy's ACLs are told apart by group and KeyRule.
type ACL struct {
	Group string
	Row   *nbdb.ACL
}

// numbersOf says at which numbers the members of a view have its named port now, sorted.
type numbersOf func(viewSpec) []int32

// acls are the policy's ACLs. They depend on pods by the numbers of named ports alone.
func (p *parsed) acls(numbers numbersOf) []ACL {
	c := compiler{policy: p, group: selectionView(p.selects).name, numbers: numbers}
	for i := range p.rules {
		c.rule(&p.rules[i])
	}
	for d, isolates := range p.isolates {
		if isolates && p.log.drop {
			c.drop(direction(d))
		}
	}
	return c.out
}

// views are those that the policy's ACLs need.
func (p *parsed) views() []viewSpec {
	out := []viewSpec{selectionView(p.selects)}
	for d, isolates := range p.isolates {
		if isolates {
			out = append(out, isolationView(p.selects, direction(d)))
		}
	}
	for i := range p.rules {
		r := &p.rules[i]
		if r.wholePeers() {
			for _, list := range r.lists {
				out = append(out, peersView(list))
			}
		}
		for proto, ps := range r.ports {
			for _, name := range ps.names {
				out = append(out, p.portViews(r, namedPort{proto, name})...)
			}
		}
	}
	return out
}

// portViews are those of a named port of a rule: the port is one of the pods that are connected to.
func (p *parsed) portViews(r *rule, port namedPort) []viewSpec {
	if r.direction == ingress {
		return []viewSpec{selectionPortView(p.selects, port)}
	}
	if r.anyPeer {
		return []viewSpec{peersPortView(listOf(everyPod()), port)}
	}
	var out []viewSpec
	for _, list := range r.lists {
		out = append(out, peersPortView(list, port))
	}
	if r.hasBlock() {
		out = append(out, peersPortView(r.within, port))
	}
	return out
}

// maxLists bounds the address sets of one rule. Below it each peer has a set of its own, which all rules share that name the peer, so that a pod that many policies
// name, of a monitoring namespace for example, is one member more in one set and not in one for each policy. Above it all peers of the rule are in one set.
const maxLists = 8

// name makes what the rule's rows are named for, once: it is as long as the rule, and each of its ports needs it.
func (r *rule) name(peers []classSpec, blocks []netip.Prefix) {
	if len(peers) > maxLists {
		r.lists = []classList{listOf(peers...)}
	} else {
		for _, c := range peers {
			r.lists = append(r.lists, listOf(c))
		}
	}
	if len(blocks) > 0 {
		r.block, r.within = newBlockSpec(blocks), listOf(podsWithin(blocks))
	}
}

func (r *rule) hasBlock() bool { return len(r.block.prefixes) > 0 }

// wholePeers says whether the rule needs its peers whatever ports they have. An egress rule for named ports alone does not.
func (r *rule) wholePeers() bool {
	if r.ports == nil || r.direction == ingress {
		return true
	}
	for _, ps := range r.ports {
		if ps.all || len(ps.spans) > 0 {
			return true
		}
	}
	return false
}

// blocks are the sets of prefixes that the policy's ACLs need.
func (p *parsed) blocks() []blockSpec {
	var out []blockSpec
	for i := range p.rules {
		if r := &p.rules[i]; r.hasBlock() && r.wholePeers() {
			out = append(out, r.block)
		}
	}
	return out
}

type compiler struct {
	policy  *parsed
	group   string
	numbers numbersOf
	out     []ACL
}

func (c *compiler) rule(r *rule) {
	if r.ports == nil {
		c.permit(r, "", c.group, "ip")
		return
	}
	for _, proto := range protocols {
		ps, ok := r.ports[proto]
		if !ok {
			continue
		}
		id := "/" + strings.ToLower(string(proto))
		if ps.all || len(ps.spans) > 0 {
			c.permit(r, id, c.group, ps.spans.match(proto))
		}
		for _, name := range ps.names {
			c.named(r, id+"/"+name, namedPort{proto, name})
		}
	}
}

// named permits a named port, at each number that it has.
func (c *compiler) named(r *rule, id string, port namedPort) {
	for _, v := range c.policy.portViews(r, port) {
		for _, n := range c.numbers(v) {
			id, match := fmt.Sprintf("%s/%d", id, n), spans{{n, n}}.match(port.protocol)
			if r.direction == ingress {
				c.permit(r, id, v.row(n), match)
			} else {
				c.permitSet(r, id, c.group, peer{setNames(v.row(n)), match})
			}
		}
	}
}

// permit permits what matches between the pods of a group and the rule's peers.
func (c *compiler) permit(r *rule, id, group, match string) {
	if r.anyPeer {
		c.allow(r, id, group, match)
	}
	for _, list := range r.lists {
		c.permitSet(r, id, group, peer{setNames(peersView(list).name), match})
	}
	if r.hasBlock() {
		c.permitSet(r, id, group, peer{r.block.sets(), match})
	}
}

// peer is the other side: its address sets by family, no name where there is none, and what the packet is besides.
type peer struct {
	sets  [len(families)]string
	match string
}

// setNames are the address sets of a view.
func setNames(row string) (out [len(families)]string) {
	for i, f := range families {
		out[i] = row + f.suffix
	}
	return out
}

// permitSet permits a peer to the pods of a group, in either family.
func (c *compiler) permitSet(r *rule, id, group string, p peer) {
	for i, f := range families {
		if p.sets[i] == "" {
			continue
		}
		match := r.direction.peer(f.match) + " == $" + p.sets[i]
		if p.match != "ip" { // the address says that already
			match += " && " + p.match
		}
		c.allow(r, id+"/"+p.sets[i], group, match)
	}
}

func (c *compiler) allow(r *rule, id, group, match string) {
	priority := PriorityAllow
	if c.policy.log.allow {
		priority = PriorityLoggedAllow
	}
	c.add(r.direction, fmt.Sprintf("%s/%d%s", r.direction, r.index, id), ACL{Group: group, Row: &nbdb.ACL{
		Priority: priority, Action: nbdb.ACLActionAllowRelated, Match: r.direction.own(group) + " && " + match, Name: c.name(r.direction, r.index),
	}})
}

// drop logs what the policy's pods lose in a direction.
func (c *compiler) drop(d direction) {
	c.add(d, d.String()+"/drop", ACL{Group: c.group, Row: &nbdb.ACL{
		Priority: PriorityLoggedDrop, Action: nbdb.ACLActionDrop, Match: d.own(c.group) + " && ip", Name: c.name(d, "drop"),
	}})
}

// name is what log lines and listings call an ACL. Nothing is found by it.
func (c *compiler) name(d direction, rule any) *string {
	return aclName(fmt.Sprintf("np/%s/%s/%v", c.policy.key, d, rule))
}

func (c *compiler) add(d direction, id string, a ACL) {
	a.Row.Direction, a.Row.Options = d.acl(), options(d)
	a.Row.ExternalIDs = map[string]string{
		ident.OwnerKey: ident.OwnerPolicy, ident.KeyNamespace: c.policy.key.Namespace, ident.KeyName: c.policy.key.Name, ident.KeyRule: id,
	}
	if a.Row.Action == nbdb.ACLActionDrop || c.policy.log.allow {
		logged(a.Row)
	}
	c.out = append(c.out, a)
}

// own is the isolated pod's side of a match, peer the field of the other's address.
func (d direction) own(group string) string {
	return [...]string{"outport", "inport"}[d] + " == @" + group
}

func (d direction) peer(family string) string { return family + [...]string{".src", ".dst"}[d] }

// options: what a pod sends is judged by the address of the Service's backend, not by the Service's own.
func options(d direction) map[string]string {
	if d == egress {
		return map[string]string{"apply-after-lb": "true"}
	}
	return nil
}

// maxACLName is what the column takes.
const maxACLName = 63

func aclName(text string) *string {
	if len(text) > maxACLName {
		sum := sha256.Sum256([]byte(text))
		text = text[:maxACLName-9] + "#" + hex.EncodeToString(sum[:4])
	}
	return &text
}

// sortACLs puts ACLs into the order in which they are given out.
func sortACLs(acls []ACL) {
	slices.SortFunc(acls, func(a, b ACL) int { return cmp.Compare(a.Key(), b.Key()) })
}

// ACLKey tells ACLs apart: they have no names of their own. Keys are in the order in which ACLs are given out.
type ACLKey string

// Key is made of the ACL's owner, its rule and its group.
func (a ACL) Key() ACLKey {
	ids := a.Row.ExternalIDs
	return ACLKey(strings.Join([]string{ids[ident.OwnerKey], ids[ident.KeyNamespace], ids[ident.KeyName], ids[ident.KeyRule], a.Group}, "\x00"))
}

// Equal says whether two ACLs are the same but for their UUIDs. To a database an absent map and an empty one are the same.
func (a ACL) Equal(b ACL) bool {
	x, y := *a.Row, *b.Row
	options := maps.Equal(x.Options, y.Options)
	x.UUID, x.Options, y.UUID, y.Options = "", nil, "", nil
	return a.Group == b.Group && options && reflect.DeepEqual(x, y)
}

func byKey(acls []ACL) map[ACLKey]ACL {
	out := make(map[ACLKey]ACL, len(acls))
	for _, a := range acls {
		out[a.Key()] = a
	}
	return out
}

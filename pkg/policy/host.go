package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Host is a node as policies see it.
type Host struct {
	Node string
	// IPs are the Node's own addresses.
	IPs []netip.Addr
	// Own are the addresses on the join network of what the node itself sends, Clients those under which it passes on the clients that it source-NATs.
	Own, Clients []netip.Addr
}

// names are the addresses of a family by which ipBlocks know a join address: the node's own, or itself if the node has none.
func (h Host) names(join netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range h.IPs {
		if a.Is4() == join.Is4() {
			out = append(out, a)
		}
	}
	if out == nil {
		out = []netip.Addr{join}
	}
	return out
}

// within are the join addresses of a host that a block holds by another name.
func (h Host) within(block []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, join := range slices.Concat(h.Own, h.Clients) {
		for _, a := range h.names(join) {
			if holds(block, a) {
				out = append(out, join)
				break
			}
		}
	}
	return out
}

// exemption permits what a node sends to the pods on it, wherever they are isolated. OVN evaluates to-lport ACLs on the chassis of the receiving port, so that
// there is one for each node, in force on that node only.
func (h Host) exemption() []ACL {
	var from []string
	for _, a := range h.Own {
		for _, f := range families {
			if f.has(a) {
				from = append(from, f.match+".src == "+a.String())
			}
		}
	}
	if len(from) == 0 {
		return nil
	}
	return []ACL{{Group: IngressGroup, Row: &nbdb.ACL{
		Priority: PriorityExempt, Action: nbdb.ACLActionAllowRelated, Direction: ingress.acl(), Name: aclName("np/node/" + h.Node),
		Match:       fmt.Sprintf("%s && (%s) && is_chassis_resident(%q)", ingress.own(IngressGroup), strings.Join(from, " || "), ident.NodePort(h.Node)),
		ExternalIDs: map[string]string{ident.OwnerKey: ident.OwnerNode, ident.KeyName: h.Node, ident.KeyRule: "ingress/exempt"},
	}}}
}

// baseACLs are there without any policy.
func baseACLs() []ACL {
	base := func(d direction, rule string, row nbdb.ACL) ACL { return constant(d, isolationGroup(d), rule, row) }
	return append(handoverACLs(),
		base(ingress, "drop", nbdb.ACL{Priority: PriorityDrop, Action: nbdb.ACLActionDrop, Match: "ip"}),
		base(egress, "drop", nbdb.ACL{Priority: PriorityDrop, Action: nbdb.ACLActionDrop, Match: "ip"}),
		// OVN tracks connections, and lets replies pass, only where a switch has some allow-related ACL (northd/northd.c, ls_get_acl_flags). With policies that permit
		// nothing, an isolated pod would get no answer to what it sends; this ACL is there to be there.
		base(ingress, "replies", nbdb.ACL{Priority: PriorityExempt, Action: nbdb.ACLActionAllowRelated, Match: "ct.est && ct.rpl"}),
		// What a pod sends to a Service and comes back to itself has these source addresses, which port security lets nobody use. Its egress rules are not asked: OVN
		// turns the packet round before it comes to them (northd.c, ls_in_hairpin before ls_in_acl_after_lb; measured).
		base(ingress, "hairpin", nbdb.ACL{
			Priority: PriorityExempt, Action: nbdb.ACLActionAllowRelated, Match: fmt.Sprintf("(ip4.src == %s || ip6.src == %s)", ident.HairpinSources()[0], ident.HairpinSources()[1]),
		}),
		// A guest's DHCPv6 request (RFC 8415), which OVN answers itself. It is allow-related for the same reason.
		base(egress, "dhcpv6", nbdb.ACL{
			Priority: PriorityExempt, Action: nbdb.ACLActionAllowRelated, Match: "ip6.dst == ff02::1:2 && udp.src == 546 && udp.dst == 547",
		}),
		// One of DHCPv4 (RFC 2131), to everybody: it goes no further than OVN's answer, or the switch. One that renews a lease goes to the router's address, and is left to the pod's
		// policies; a client that gets no answer asks everybody in time.
		base(egress, "dhcpv4", nbdb.ACL{
			Priority: PriorityExempt, Action: nbdb.ACLActionAllowRelated, Match: "ip4.dst == 255.255.255.255 && udp.src == 68 && udp.dst == 67",
		}),
	)
}

// constant is an ACL of a group that is always there.
func constant(d direction, group, rule string, row nbdb.ACL) ACL {
	row.Direction, row.Options, row.Name = d.acl(), options(d), aclName("np/"+d.String()+"/"+rule)
	row.ExternalIDs = map[string]string{ident.OwnerKey: ident.OwnerNetwork, ident.KeyName: ident.DefaultNetwork, ident.KeyRule: d.String() + "/" + rule}
	row.Match = d.own(group) + " && " + row.Match
	return ACL{Group: group, Row: &row}
}

// Meter returns the rows of LogMeter. They are always the same.
func Meter() (*nbdb.Meter, *nbdb.MeterBand) {
	fair := false // fair, each ACL would have a meter of its own, and all of them together no bound
	owner := map[string]string{ident.OwnerKey: ident.OwnerNetwork, ident.KeyName: ident.DefaultNetwork}
	return &nbdb.Meter{Name: LogMeter, Unit: nbdb.MeterUnitPktps, Fair: &fair, ExternalIDs: owner},
		&nbdb.MeterBand{Action: nbdb.MeterBandActionDrop, Rate: logRate, ExternalIDs: owner}
}

// blockSpec is a set of prefixes.
type blockSpec struct {
	name     string
	prefixes []netip.Prefix
}

func newBlockSpec(prefixes []netip.Prefix) blockSpec {
	return blockSpec{name: identifier('b', blockText(prefixes)), prefixes: prefixes}
}

// sets are its address sets by family. One of a family that no prefix is of stays empty, as nodes are in blocks of their own families alone; so it is not made.
func (b blockSpec) sets() (out [len(families)]string) {
	for i, f := range families {
		if slices.ContainsFunc(b.prefixes, func(p netip.Prefix) bool { return f.has(p.Addr()) }) {
			out[i] = b.name + f.suffix
		}
	}
	return out
}

// block is a blockSpec in use.
type block struct {
	blockSpec
	users map[*policy]int
}

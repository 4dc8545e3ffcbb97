package kubectl

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// inside is what OVN's databases and a node's Open vSwitch have of a port.
type inside struct {
	port, node string
	// addresses are the port's, by which load balancers know it.
	addresses []netip.Addr
	// Rows: of NB, those that it has been asked for; of SB, what came of it; of the node, who plugged it in.
	switchPorts, groups, acls, balancers []row
	bindings, chassis                    []row
	interfaces                           []row
}

// inside asks OVN, where it runs as Godwit's pods.
func (c cluster) inside(ctx context.Context, port, node string, addresses []netip.Addr) (inside, error) {
	in := inside{port: port, node: node, addresses: addresses}
	nb, err := c.member(ctx, northbound)
	if err != nil {
		return in, err
	}
	sb := nb
	sb.name = southbound.container
	named := func(column string) string { return fmt.Sprintf("%s=%q", column, port) }
	ask := func(to *[]row, where container, program, columns string, args ...string) {
		if err == nil {
			*to, err = c.rows(ctx, where, append([]string{program, "--no-leader-only", "--format=json", "--columns=" + columns}, args...))
		}
	}
	ask(&in.switchPorts, nb, northbound.client, "_uuid,up,options,external_ids", "find", "Logical_Switch_Port", named("name"))
	ask(&in.bindings, sb, southbound.client, "chassis,additional_chassis,up,options", "find", "Port_Binding", named("logical_port"))
	ask(&in.chassis, sb, southbound.client, "_uuid,name", "list", "Chassis")
	ask(&in.balancers, nb, northbound.client, "name,vips", "list", "Load_Balancer")
	if err == nil && len(in.switchPorts) > 0 {
		ask(&in.groups, nb, northbound.client, "name,acls", "find", "Port_Group", "ports{>=}"+in.switchPorts[0].text("_uuid"))
	}
	var acls []string
	for _, g := range in.groups {
		acls = append(acls, g.list("acls")...)
	}
	if len(acls) > 0 {
		ask(&in.acls, nb, northbound.client, "_uuid,action,direction,match,external_ids", append([]string{"list", "ACL"}, acls...)...)
	}
	if err != nil || node == "" {
		return in, err
	}
	vswitchd, err := c.on(ctx, node, switchComponent, "vswitchd")
	if err != nil {
		return in, err
	}
	in.interfaces, err = c.rows(ctx, vswitchd, []string{"ovs-vsctl", "--format=json", "--columns=name,ofport,external_ids", "find", "Interface", fmt.Sprintf("external_ids:%s=%q", ident.KeyIfaceID, port)})
	return in, err
}

// tell is that for people, a line each.
func (in inside) tell() [][]string {
	if len(in.switchPorts) == 0 {
		return [][]string{{"  in OVN", "the northbound database has no port " + in.port + ": godwit-controller writes it when the pod has a node"}}
	}
	lsp := in.switchPorts[0]
	out := [][]string{
		{"  row", lsp.text("_uuid")},
		{"  asks for", pairs(lsp.texts("options"))},
		{"  bound to", in.bound()},
		{"  interface", in.plugged()},
	}
	var groups []string
	for _, g := range in.groups {
		groups = append(groups, g.text("name"))
	}
	slices.Sort(groups)
	out = append(out, []string{"  port groups", filled(strings.Join(groups, " "))})
	policies := map[string]bool{}
	for _, a := range in.acls {
		if ids := a.texts("external_ids"); ids[ident.OwnerKey] == ident.OwnerPolicy {
			policies[ids[ident.KeyNamespace]+"/"+ids[ident.KeyName]] = true
		} else if ids[ident.OwnerKey] == "" {
			out = append(out, []string{"  foreign ACL", aclText(a)})
		}
	}
	return append(out, []string{"  permits", filled(strings.Join(slices.Sorted(maps.Keys(policies)), " "))}, []string{"  balanced by", filled(strings.Join(in.balancing(), " "))})
}

// bound is the chassis that has the port, and those beside it during a migration.
func (in inside) bound() string {
	if len(in.bindings) == 0 {
		return "the southbound database has no such port: is northd at work? kubectl ovn db status"
	}
	names := map[string]string{}
	for _, c := range in.chassis {
		names[c.text("_uuid")] = c.text("name")
	}
	b := in.bindings[0]
	text := filled(names[b.text("chassis")])
	for _, more := range b.list("additional_chassis") {
		text += " and " + filled(names[more])
	}
	if b["up"] == true {
		return text + ", up"
	}
	return text + ", not up"
}

// plugged is the interface of the node's switch.
func (in inside) plugged() string {
	if len(in.interfaces) == 0 {
		return "none on " + filled(in.node)
	}
	var all []string
	for _, i := range in.interfaces {
		text := fmt.Sprintf("%s on %s, OpenFlow port %v", i.text("name"), in.node, i["ofport"])
		if i.texts("external_ids")["ovn-installed"] == "true" {
			text += ", ovn-installed"
		} else {
			text += ", its flows not installed"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// balancing are the load balancers that have one of the addresses among their endpoints.
func (in inside) balancing() []string {
	var out []string
	for _, lb := range in.balancers {
		if slices.ContainsFunc(slices.Collect(maps.Values(lb.texts("vips"))), in.endpoint) {
			out = append(out, lb.text("name"))
		}
	}
	slices.Sort(out)
	return out
}

// endpoint says whether one of the addresses is among endpoints, ADDRESS:PORT,….
func (in inside) endpoint(list string) bool {
	for text := range strings.SplitSeq(list, ",") {
		if to, err := netip.ParseAddrPort(text); err == nil && slices.Contains(in.addresses, to.Addr()) {
			return true
		}
	}
	return false
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return filled(strings.Join(out, " "))
}

package topology

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range texts {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// told is what policies do, in the order in which they are asked.
func told(all []*nbdb.LogicalRouterPolicy) map[string]string {
	out := map[string]string{}
	for _, p := range all {
		do := p.Action
		for _, hop := range p.Nexthops {
			do += " " + hop
		}
		out[p.Match] = do
	}
	return out
}

// The order decides: inside, nodes, the Subnet's own egress, an anchored VM, the node where the pod runs.
func TestEgressPriorities(t *testing.T) {
	join := v1alpha1.Join{IPs: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/16")}}
	node := Node("n", join).Egress
	order := []int{
		Subnet("s", spec(t, "10.0.0.0/16"), DHCP{}).Inside[0].Priority, node[2].Priority,
		SubnetEgress("s", spec(t, "10.0.0.0/16").CIDRs, Gateway{})[0].Priority, node[1].Priority, node[0].Priority,
	}
	for i := range order[1:] {
		if order[i] <= order[i+1] {
			t.Errorf("priorities %v do not fall", order)
		}
	}
	rules := map[string]bool{}
	for _, p := range node {
		rules[p.ExternalIDs[ident.KeyRule]] = true
	}
	if len(rules) != len(node) {
		t.Errorf("the policies of a node have rules %v: one is taken for another", rules)
	}
}

func TestSubnetEgress(t *testing.T) {
	both := []string{"10.0.0.0/16", "fd00::/64"}
	match4, match6 := `inport == "gateway/subnet/s" && ip4`, `inport == "gateway/subnet/s" && ip6`
	for name, c := range map[string]struct {
		cidrs   []string
		through Gateway
		want    map[string]string
	}{
		"none":              {both, Gateway{}, map[string]string{match4: "drop", match6: "drop"}},
		"a gateway":         {both, Gateway{"n", addrs("100.64.0.2", "fd98::2")}, map[string]string{match4: "reroute 100.64.0.2", match6: "reroute fd98::2"}},
		"one of one family": {both, Gateway{"n", addrs("100.64.0.2")}, map[string]string{match4: "reroute 100.64.0.2", match6: "drop"}},
		"for one family":    {both[:1], Gateway{"n", addrs("100.64.0.2", "fd98::2")}, map[string]string{match4: "reroute 100.64.0.2", match6: "drop"}},
		"none for one":      {both[1:], Gateway{}, map[string]string{match4: "drop", match6: "drop"}},
	} {
		t.Run(name, func(t *testing.T) {
			rows := SubnetEgress("s", spec(t, c.cidrs...).CIDRs, c.through)
			if d := cmp.Diff(c.want, told(rows)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			for _, p := range rows {
				if p.ExternalIDs[ident.KeyEgressNode] != c.through.Node {
					t.Errorf("the row says that the gateway is %q", p.ExternalIDs[ident.KeyEgressNode])
				}
			}
		})
	}
}

func TestAddressSets(t *testing.T) {
	got := map[string][]string{}
	for _, s := range slices.Concat(AnchorSets("n.1-a", addrs("10.0.0.7", "fd00::7")), HostSets(addrs("192.0.2.1")), ElsewhereSets(spec(t, "10.0.0.0/16").CIDRs)) {
		got[s.Name] = s.Addresses
	}
	want := map[string][]string{
		ident.AnchorSet("n.1-a", "ip4"): {"10.0.0.7"}, ident.AnchorSet("n.1-a", "ip6"): {"fd00::7"}, "godwit_hosts_ip4": {"192.0.2.1"}, "godwit_hosts_ip6": nil,
		"godwit_elsewhere_ip4": {"10.0.0.0/16"}, "godwit_elsewhere_ip6": nil,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if d := cmp.Diff(addrs("10.0.0.7", "fd00::7"), ParseAddresses([]string{"0a:67:00:00:00:07 10.0.0.7 fd00::7", "unknown"}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("addresses (-want +got)\n%s", d)
	}
}

package topology

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

func spec(t *testing.T, cidrs ...string) ipam.Spec {
	t.Helper()
	s, err := ipam.ParseSpec(cidrs, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSubnet(t *testing.T) {
	rows := Subnet("s", spec(t, "10.0.0.0/16", "fd00::/64"), DHCP{MTU: 1400})
	if d := cmp.Diff([]string{"10.0.0.1/16", "fd00::1/64"}, rows.RouterPort.Networks); d != "" {
		t.Errorf("networks (-want +got)\n%s", d)
	}
	if got := rows.Uplink.Options["router-port"]; got != rows.RouterPort.Name {
		t.Errorf("the uplink leads to %q, want %q", got, rows.RouterPort.Name)
	}
	if ra := rows.RouterPort.Ipv6RaConfigs; ra["address_mode"] != "dhcpv6_stateful" || ra["mtu"] != "1400" {
		t.Errorf("guests are advertised %v", ra)
	}
	if rows.DHCPv6 == nil || rows.DHCPv6.Cidr != "fd00::/64" || rows.DHCPv6.Options["server_id"] != rows.RouterPort.MAC {
		t.Errorf("DHCPv6 options %+v", rows.DHCPv6)
	}
	if medium, low := rows.RouterPort.Ipv6RaConfigs["router_preference"], Subnet("s", spec(t, "fd00::/64"), DHCP{MTU: 1400}).ForSecondNetworks().RouterPort.Ipv6RaConfigs["router_preference"]; medium != "MEDIUM" || low != "LOW" {
		t.Errorf("guests take the router by preference %s, and in a Subnet for second networks by %s", medium, low)
	}
	if only4 := Subnet("s", spec(t, "10.0.0.0/16"), DHCP{MTU: 1400}); only4.DHCPv6 != nil || only4.RouterPort.Ipv6RaConfigs != nil {
		t.Errorf("without IPv6: %+v, %v", only4.DHCPv6, only4.RouterPort.Ipv6RaConfigs)
	}
	var inside []string
	for _, p := range rows.Inside {
		inside = append(inside, p.Match+" "+p.Action)
	}
	if d := cmp.Diff([]string{"ip4.dst == 10.0.0.0/16 allow", "ip6.dst == fd00::/64 allow"}, inside); d != "" {
		t.Errorf("policies (-want +got)\n%s", d)
	}
}

// What leaves is decided after what stays, and only where the node's port is.
func TestNodeEgress(t *testing.T) {
	join := v1alpha1.Join{
		IPs: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/16"), netip.MustParsePrefix("fd98::2/64")}, MAC: v1alpha1.MAC{0x0a, 0x67, 0x64, 0x40, 0, 2},
		Clients: []netip.Prefix{netip.MustParsePrefix("100.64.0.3/16"), netip.MustParsePrefix("fd98::3/64")},
	}
	rows := Node("n", join)
	if d := cmp.Diff([]string{"0a:67:64:40:00:02 100.64.0.2 fd98::2 100.64.0.3 fd98::3"}, rows.Port.Addresses); d != "" {
		t.Errorf("addresses (-want +got)\n%s", d)
	}
	if rows.Port.PortSecurity != nil {
		t.Error("ovn0 has port security: clients of a hostPort could not pass it")
	}
	want := []string{
		`ip4 && is_chassis_resident("node/n") → 100.64.0.2`,
		`ip4.src == $` + ident.AnchorSet("n", "ip4") + ` → 100.64.0.2`, `ip4.dst == $godwit_hosts_ip4 && ip4.src == $godwit_elsewhere_ip4 && is_chassis_resident("node/n") → 100.64.0.2`,
		`ip6 && is_chassis_resident("node/n") → fd98::2`,
		`ip6.src == $` + ident.AnchorSet("n", "ip6") + ` → fd98::2`, `ip6.dst == $godwit_hosts_ip6 && ip6.src == $godwit_elsewhere_ip6 && is_chassis_resident("node/n") → fd98::2`,
	}
	var got []string
	for _, p := range rows.Egress {
		got = append(got, p.Match+" → "+p.Nexthops[0])
		if p.Priority >= Subnet("s", spec(t, "10.0.0.0/16"), DHCP{}).Inside[0].Priority || p.Action != nbdb.LogicalRouterPolicyActionReroute {
			t.Errorf("policy %+v comes before those that keep traffic inside", p)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestNetworkDefaultRoutes(t *testing.T) {
	got := map[string]string{}
	for _, r := range Network(ident.DefaultNetwork, spec(t, "100.64.0.0/16", "fd98::/64")).DefaultRoutes {
		got[r.IPPrefix] = r.Nexthop
	}
	want := map[string]string{"0.0.0.0/0": "100.64.255.254", "::/0": "fd98::ffff:ffff:ffff:fffe"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// What claims to be a pod's connection to itself comes no further than the router, whatever else says that it stays inside.
func TestNetworkDropsFalseHairpins(t *testing.T) {
	got := map[string]string{}
	for _, p := range Network(ident.DefaultNetwork, spec(t, "100.64.0.0/16", "fd98::/64")).Drops {
		if p.Priority > Subnet("s", spec(t, "10.0.0.0/16", "fd00::/64"), DHCP{}).Inside[0].Priority {
			got[p.Match] = p.Action
		}
	}
	want := map[string]string{"ip4.src == 169.254.71.87": nbdb.LogicalRouterPolicyActionDrop, "ip6.src == fd67:6f64:7769:7400::1": nbdb.LogicalRouterPolicyActionDrop}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestDHCP(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")
	all := DHCP{MTU: 1400, Servers: []netip.Addr{v4, v6, v4.Next()}, Search: []string{"svc.cluster.local", "cluster.local"}, Lease: 3600}
	rows := Subnet("s", spec(t, "10.0.0.0/16", "fd00::/64"), all)
	mac := rows.RouterPort.MAC
	want := map[string]string{
		"server_id": "10.0.0.1", "server_mac": mac, "router": "10.0.0.1", "lease_time": "3600", "mtu": "1400", "dns_server": "{10.96.0.10, 10.96.0.11}",
		"domain_search_list": `"svc.cluster.local,cluster.local"`,
	}
	if d := cmp.Diff(want, rows.DHCPv4.Options); d != "" || rows.DHCPv4.Cidr != "10.0.0.0/16" {
		t.Errorf("DHCPv4 of %s (-want +got)\n%s", rows.DHCPv4.Cidr, d)
	}
	if d := cmp.Diff(map[string]string{"server_id": mac, "dns_server": "{fd00:96::a}", "domain_search": ""}, rows.DHCPv6.Options); d != "" {
		t.Errorf("DHCPv6 (-want +got)\n%s", d)
	}
	for _, search := range [][]string{{"lan"}, {"example.org"}, {"lan", "home"}} { // which OVN says as one label
		want := map[bool]string{true: `"lan"`}[len(search) == 1 && search[0] == "lan"]
		if got := Subnet("s", spec(t, "fd00::/64"), DHCP{Search: search}).DHCPv6.Options["domain_search"]; got != want {
			t.Errorf("DHCPv6 says the domains %v as %s, want %q", search, got, want)
		}
	}
	bare := Subnet("s", spec(t, "10.0.0.0/16"), DHCP{Lease: 60}).ForSecondNetworks()
	for _, key := range []string{"router", "mtu", "dns_server", "domain_search_list"} {
		if v, ok := bare.DHCPv4.Options[key]; !ok || v != "" {
			t.Errorf("%s is %q (%v), want it empty, so that a key of before goes", key, v, ok)
		}
	}
}

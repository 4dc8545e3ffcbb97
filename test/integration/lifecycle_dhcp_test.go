package integration

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// dhcpOf waits until OVN would answer a VM by DHCPv4 as options say; nil: not at all.
func (e *env) dhcpOf(t *testing.T, port ident.PortName, want map[string]string) *nbdb.LogicalSwitchPort {
	t.Helper()
	var row *nbdb.LogicalSwitchPort
	eventually(t, func() (err error) {
		if row, err = e.nb.Port(t.Context(), port); err != nil || row == nil {
			return errors.Join(err, fmt.Errorf("no row %s", port))
		}
		if row.Dhcpv4Options == nil || want == nil {
			if (row.Dhcpv4Options == nil) != (want == nil) {
				err = fmt.Errorf("the row %s has DHCPv4 options %v, want %v", port, row.Dhcpv4Options, want)
			}
			return err
		}
		options := map[string]string{}
		for _, r := range e.central.Dump(t, nbdb.DHCPOptionsTable)[nbdb.DHCPOptionsTable] {
			if id, ok := r["_uuid"].(ovsdb.UUID); !ok || id.GoUUID != *row.Dhcpv4Options {
				continue
			}
			all, _ := r["options"].(ovsdb.OvsMap)
			for k, v := range all.GoMap {
				options[fmt.Sprint(k)] = fmt.Sprint(v)
			}
		}
		if d := cmp.Diff(want, options); d != "" {
			err = fmt.Errorf("DHCPv4 of %s (-want +got)\n%s", port, d)
		}
		return err
	})
	return row
}

// OVN answers DHCPv4 where a binding plugin connects the VM, with what its Subnet says, and nowhere else: for the bridge and the masquerade binding KubeVirt's own server does.
func TestLifecycleDHCP(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.installNADs(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	blue := subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24", "fd00:77::/64"}, NamespaceSelector: selectsAny("shop"), SecondNetworksOnly: true, MTU: 1300})
	green := subnet("green", v1alpha1.SubnetSpec{
		CIDRs: []string{"10.78.0.0/24", "fd00:78::/64"}, NamespaceSelector: selectsAny("shop"), MTU: 1400,
		DHCP: &v1alpha1.SubnetDHCP{NameServers: []string{"10.96.0.10", "fd00:96::a"}, SearchDomains: []string{"example.org"}, LeaseSeconds: 600},
	})
	e.create(t, blue, green)
	e.nad(t, key("shop", "blue"), onSubnet("blue"))
	bound := func(binding *kubevirtv1.PluginBinding) func(*kubevirtv1.VirtualMachineInstance) {
		return func(vmi *kubevirtv1.VirtualMachineInstance) {
			for i := range vmi.Spec.Domain.Devices.Interfaces {
				nic := &vmi.Spec.Domain.Devices.Interfaces[i]
				if nic.Binding = binding; binding != nil {
					nic.InterfaceBindingMethod = kubevirtv1.InterfaceBindingMethod{}
				}
			}
		}
	}
	plain := e.vmi(t, key("shop", "plain"), onNetworks("blue"))
	bridge := ident.VMPort("shop", plain.Name, ident.DefaultNetwork)
	if row := e.dhcpOf(t, bridge, nil); row.Dhcpv6Options == nil {
		t.Error("OVN answers the bridge binding by no DHCPv6")
	}
	e.dhcpOf(t, ident.VMPort("shop", plain.Name, "blue"), nil)

	vmi := e.vmi(t, key("shop", "plugged"), onNetworks("blue"), bound(&kubevirtv1.PluginBinding{Name: "managedtap"}))
	first, second := ident.VMPort("shop", vmi.Name, ident.DefaultNetwork), ident.VMPort("shop", vmi.Name, "blue")
	mac := func(subnet string) string { return ident.GatewayMAC(ident.SubnetSwitch(subnet)).String() }
	told := map[string]string{
		"server_id": "10.78.0.1", "router": "10.78.0.1", "server_mac": mac("green"), "lease_time": "600", "mtu": "1400", "dns_server": "{10.96.0.10}", "domain_search_list": `"example.org"`,
	}
	e.dhcpOf(t, first, told)
	e.dhcpOf(t, second, map[string]string{"server_id": "10.77.0.1", "server_mac": mac("blue"), "lease_time": "86400", "mtu": "1300"}) // its default route is the other NIC's

	before := green.DeepCopy()
	green.Spec.DHCP = nil
	if err := e.api.Patch(t.Context(), green, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	less := maps.Clone(told)
	delete(less, "dns_server")
	delete(less, "domain_search_list")
	less["lease_time"] = "86400"
	e.dhcpOf(t, first, less)

	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.vmi(t, key("shop", "plugged"), bound(nil)) // the next one of the name has the bridge binding
	e.dhcpOf(t, first, nil)
}

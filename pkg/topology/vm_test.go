package topology

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestVM(t *testing.T) {
	port := VMPort{
		Namespace: "ns", Name: "a.b", Network: "default", UID: "u", Subnet: "s", MAC: v1alpha1.MAC{2, 0, 0, 0, 0, 1},
		IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/16"), netip.MustParsePrefix("fd00::2/64")}, Allowed: []string{"10.9.0.0/24"},
	}
	lsp := VM(port)
	if lsp.Name != "vm/ns/a.b/default" || lsp.Options != nil {
		t.Errorf("port %q with options %v", lsp.Name, lsp.Options)
	}
	if d := cmp.Diff([]string{"02:00:00:00:00:01 10.0.0.2 fd00::2"}, lsp.Addresses); d != "" {
		t.Errorf("addresses (-want +got)\n%s", d)
	}
	if d := cmp.Diff([]string{"02:00:00:00:00:01 10.0.0.2 fd00::2 fe80::/64 10.9.0.0/24"}, lsp.PortSecurity); d != "" {
		t.Errorf("port_security (-want +got)\n%s", d)
	}
	port.Security = v1alpha1.PortSecurityOff
	lsp = VM(port)
	if len(lsp.PortSecurity) != 0 {
		t.Errorf("port_security %v, want none", lsp.PortSecurity)
	}
	if d := cmp.Diff([]string{"02:00:00:00:00:01 10.0.0.2 fd00::2", "unknown"}, lsp.Addresses); d != "" {
		t.Errorf("addresses (-want +got)\n%s", d)
	}
	if Unclaimed()["requested-chassis"] != "godwit-none" {
		t.Error("a new port may be claimed")
	}
}

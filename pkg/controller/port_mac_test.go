package controller

import (
	"net"
	"net/netip"
	"testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// A Port that asks for no MAC gets one whoever has the one that follows from its address: in its Subnet nobody else has it, in another it does not matter. What Ports have they keep.
func TestDecideMAC(t *testing.T) {
	const here, elsewhere = "fd00:a::7", "fd00:b::7"
	derived := ident.MAC(netip.MustParseAddr(here)).String()
	a := newTestAllocations(t, &apiOf{ports: []v1alpha1.Port{portWith("old", 1, v1alpha1.PortStatus{Subnet: "old", MAC: derived})}})
	if err := a.restoreMACs(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := &portReconciler{alloc: a}
	decide := func(name, subnet, ip, network, had string) string {
		t.Helper()
		port := portWith(name, 1, v1alpha1.PortStatus{Subnet: subnet, MAC: had})
		port.Spec.Target.Network = network
		mac, cond := r.decideMAC(&port, nil, subnet, []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(ip), 64)})
		if cond.Type != "" {
			t.Fatalf("Port %s has no MAC: %s: %s", name, cond.Reason, cond.Message)
		}
		return mac.String()
	}
	for _, c := range []struct{ name, subnet, ip, had string }{{"x", "a", here, ""}, {"y", "b", elsewhere, ""}, {"old", "old", here, derived}} {
		if got := decide(c.name, c.subnet, c.ip, podNetwork, c.had); got != derived {
			t.Errorf("Port %s has %s, want %s, which nobody else in Subnet %s has", c.name, got, derived, c.subnet)
		}
	}
	for _, c := range []struct{ why, name, subnet, ip, network string }{
		{"another has the MAC of its address", "far", "a", "fd00:a::1:0:7", podNetwork},
		{"the VM's first NIC may have the MAC of its address", "second", "blue", elsewhere, "blue"},
	} {
		got := decide(c.name, c.subnet, c.ip, c.network, "")
		if mac, err := net.ParseMAC(got); err != nil || !ident.Spare(mac) {
			t.Errorf("%s: it has %s, want a spare one", c.why, got)
		}
		a.release(portHolder(portKey("x")))
		if again := decide(c.name, c.subnet, c.ip, c.network, ""); again != got {
			t.Errorf("%s: it has had %s, and is given %s", c.why, got, again)
		}
	}
	if got := decide("v4", "c", "10.0.0.7", "blue", ""); got != ident.MAC(netip.MustParseAddr("10.0.0.7")).String() {
		t.Errorf("with an IPv4 address the second NIC has %s", got)
	}
}

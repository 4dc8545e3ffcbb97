package ident

import (
	"net/netip"
	"testing"
)

func TestPodPortIsUnambiguous(t *testing.T) {
	ns, pod, network, ok := ParsePodPort(PodPort("a", "b.c", "default"))
	if !ok || ns != "a" || pod != "b.c" || network != "default" {
		t.Errorf("parsed %q %q %q %v", ns, pod, network, ok)
	}
	for _, p := range []PortName{NodePort("n"), SwitchRouterPort(SubnetSwitch("s")), "", "pod/a/b"} {
		if _, _, _, ok := ParsePodPort(p); ok {
			t.Errorf("%q was taken for a pod's port", p)
		}
	}
}

func TestVMPortIsUnambiguous(t *testing.T) {
	ns, vm, network, ok := ParseVMPort(VMPort("a", "b.c", "default"))
	if !ok || ns != "a" || vm != "b.c" || network != "default" {
		t.Errorf("parsed %q %q %q %v", ns, vm, network, ok)
	}
	for _, p := range []PortName{PodPort("a", "b", "c"), NodePort("n"), "", "vm/a/b", "vm/a/b/c/d"} {
		if _, _, _, ok := ParseVMPort(p); ok {
			t.Errorf("%q was taken for a VM's port", p)
		}
	}
}

func TestMACs(t *testing.T) {
	for in, want := range map[string]string{"10.244.1.2": "0a:67:0a:f4:01:02", "fd00::a:b:c:d": "0a:67:00:0c:00:0d"} {
		if got := MAC(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("MAC(%s) = %s, want %s", in, got, want)
		}
	}
	a, b := GatewayMAC(SubnetSwitch("a")), GatewayMAC(SubnetSwitch("b"))
	if a.String() == b.String() || a.String() != GatewayMAC(SubnetSwitch("a")).String() {
		t.Errorf("gateways have %s and %s", a, b)
	}
	one, other := netip.MustParseAddr("fd00::7"), netip.MustParseAddr("fd00::1:0:7")
	spare, again, next, others := SpareMAC(one, 1), SpareMAC(one, 1), SpareMAC(one, 2), SpareMAC(other, 1)
	if spare.String() != again.String() || spare.String() == next.String() || spare.String() == others.String() || !Spare(spare) || Derived(spare) || Spare(MAC(one)) {
		t.Errorf("spare addresses are %s, %s again, %s, and another's %s", spare, again, next, others)
	}
	for _, mac := range [][]byte{a, b, MAC(netip.MustParseAddr("255.255.255.255")), spare} {
		if mac[0]&1 != 0 || mac[0]&2 == 0 {
			t.Errorf("%x is not a locally administered unicast address", mac)
		}
	}
}

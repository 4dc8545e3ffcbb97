package ovs

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is remembered is read again, and an earlier agent finds no route that it cannot read.
func TestUnderlayIsRemembered(t *testing.T) {
	want := Underlay{
		Bridge: "br-underlay", Link: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("fd00:1::1/64")},
		Routes: []string{"203.0.113.0/24>198.51.100.254", "0.0.0.0/0>198.51.100.254>101"},
	}
	ids := want.holdings()
	ids[keyUnderlay] = want.Link
	got, found, err := ParseUnderlay(want.Bridge, ids)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || !found || err != nil {
		t.Errorf("%v, %v (-want +got):\n%s", found, err, diff)
	}
	if ids[keyRoutes] != want.Routes[0] {
		t.Errorf("%s is %q, want the route without a metric alone", keyRoutes, ids[keyRoutes])
	}
}

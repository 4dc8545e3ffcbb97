package ipam

import (
	"net/netip"
	"testing"
)

func TestSpecHolds(t *testing.T) {
	spec, err := ParseSpec([]string{"10.9.0.0/24", "fd00:9::/64"}, nil, []string{"10.9.0.0-10.9.0.15", "10.9.0.200", "fd00:9::f0-fd00:9::ff"})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"10.9.0.7/32": false, "10.9.0.8/29": false, "10.9.0.200/32": false, "fd00:9::f0/124": false, "10.8.0.0/24": false, "fd00:8::/64": false,
		"10.9.0.16/32": true, "10.9.0.8/28": true, "10.9.0.0/28": true, "10.9.0.1/32": true, "10.0.0.0/8": true, "0.0.0.0/0": true, "fd00:9::f0/120": true, "::/0": true,
	} {
		if got := spec.Holds(netip.MustParsePrefix(text)); got != want {
			t.Errorf("somebody has, or may have, an address of %s: %v, want %v", text, got, want)
		}
	}
}

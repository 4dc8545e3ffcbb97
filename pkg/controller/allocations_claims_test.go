package controller

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/godwit-cni/godwit/pkg/ipam"
)

// claimAllocations is a Subnet blue in which every IPAMClaim may have addresses.
func claimAllocations(t *testing.T) *allocations {
	t.Helper()
	a := newTestAllocations(t, &apiOf{})
	a.claims.may = func(context.Context, string, string) bool { return true }
	if err := a.setSubnet(t.Context(), "blue", mustSpec(t, "10.77.0.0/24")); err != nil {
		t.Fatal(err)
	}
	return a
}

// What an IPAMClaim keeps is its own again when a pod is gone that had taken it and came no further: its MAC was taken, or no node had an MTU yet.
func TestClaimOfRefusedPod(t *testing.T) {
	a := claimAllocations(t)
	ip := netip.MustParseAddr("10.77.0.9")
	claim := ipamClaim{key: portKey("db"), uid: "db", ips: []netip.Addr{ip}}
	if err := a.setClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	h := nicHolder(portKey("refused"), "net1")
	if _, ips, err := a.take(h, "refused", "blue", request{wanted: claim.ips, claim: claim}); err != nil || ips[0].Addr() != ip {
		t.Fatalf("the claim's pod has %v (%v), want %s", ips, err, ip)
	}
	a.releasePod(h.key)
	thief := nicHolder(portKey("thief"), "net1")
	if _, ips, err := a.take(thief, "thief", "blue", request{wanted: claim.ips, turn: a.turn()}); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("another pod gets %v (%v), want %v: they are the claim's", ips, err, ipam.ErrTaken)
	}
	if _, ips, err := a.take(h, "next", "blue", request{wanted: claim.ips, claim: claim}); err != nil || ips[0].Addr() != ip {
		t.Errorf("the claim's next pod has %v (%v), want %s", ips, err, ip)
	}
}

// Of two pods that have seen a new IPAMClaim without addresses one gets some, and the other the same, when the first is gone.
func TestClaimOfTwoPods(t *testing.T) {
	a := claimAllocations(t)
	ask := request{claim: ipamClaim{key: portKey("db"), uid: "db"}, turn: a.turn()}
	first, second := nicHolder(portKey("first"), "net1"), nicHolder(portKey("second"), "net1")
	_, has, err := a.take(first, "first", "blue", ask)
	if err != nil || a.hasBy(first) != ask.claim.key {
		t.Fatalf("%v, %v by %v", has, err, a.hasBy(first))
	}
	if _, ips, err := a.take(second, "second", "blue", ask); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("the second has %v (%v), want %v", ips, err, ipam.ErrTaken)
	}
	if _, ips, err := a.take(first, "first", "blue", ask); err != nil || !slices.Equal(ips, has) {
		t.Errorf("the first has %v (%v), had %v", ips, err, has)
	}
	if len(a.waiting["blue"]) != 1 {
		t.Errorf("%v wait, want the second", a.waiting)
	}
	a.releasePod(first.key)
	if _, ips, err := a.take(second, "second", "blue", ask); err != nil || !slices.Equal(ips, has) {
		t.Errorf("after the first the second has %v (%v), want %v", ips, err, has)
	}
}

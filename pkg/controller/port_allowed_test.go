package controller

import (
	"slices"
	"testing"

	"github.com/godwit-cni/godwit/pkg/ipam"
)

// Nobody is allowed the addresses that NetworkPolicies exempt, whatever Subnets there are.
func TestGrantHairpin(t *testing.T) {
	bad := []string{"169.254.71.87", "169.254.71.87/32", "169.254.0.0/16", "0.0.0.0/0", "fd67:6f64:7769:7400::1", "fd67:6f64::/32", "::/0"}
	good := []string{"169.254.71.88", "169.254.80.0/20", "fd67:6f64:7769:7400::2", "10.9.0.0/24"}
	granted, refused := grant(slices.Concat(bad, good), []ipam.Spec{hairpins()})
	if !slices.Equal(granted, good) || !slices.Equal(refused, bad) {
		t.Errorf("granted %v, refused %v", granted, refused)
	}
}

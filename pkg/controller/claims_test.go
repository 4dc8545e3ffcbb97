package controller

import (
	"testing"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// While northd has not taken a row over, a chassis that the southbound database still asks for is in its right; nothing that a node can write makes it so.
func TestClaimBeforeNorthdHasTakenTheRowOver(t *testing.T) {
	known := map[ident.ChassisName]bool{"n1": true, "n2": true, "n3": true}
	for name, c := range map[string]struct {
		asked     string
		requested bool
		want      bool
	}{
		"the source, after the commit":                                {"n2", true, true},
		"the target, after the rollback":                              {"n2,n3", true, true},
		"northd has taken it over":                                    {"n2", false, false},
		"a chassis is unknown, its host name may be taken by another": {"gone", true, false},
		"one of two is":                                               {"n2,gone", true, false},
		"nobody is asked for":                                         {"", true, false},
		"the port is nobody's":                                        {string(ident.NoChassis), true, false},
	} {
		if got := northdBehind(c.asked, ovn.Claim{Port: "p", Chassis: "n1", Requested: c.requested}, known); got != c.want {
			t.Errorf("%s: northd is behind: %v, want %v", name, got, c.want)
		}
	}
}

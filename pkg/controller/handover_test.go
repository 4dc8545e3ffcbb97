package controller

import (
	"testing"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// A journey follows from the row alone, whenever it is looked at.
func TestPolicyJourney(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) string { return now.Add(-d).Format(time.RFC3339Nano) }
	for name, c := range map[string]struct {
		requested, moved string
		want             journey
	}{
		"never moved":                      {"n1", "", journey{}},
		"on its way":                       {"n1,n2", "", journey{moving: true}},
		"on its way again":                 {"n2,n1", ago(time.Hour), journey{moving: true}},
		"just arrived":                     {"n2", ago(0), journey{moving: true, left: time.Minute}},
		"in the grace":                     {"n2", ago(45 * time.Second), journey{moving: true, left: 15 * time.Second}},
		"the grace is over":                {"n2", ago(time.Minute), journey{}},
		"it ended while nobody looked":     {"n2", ago(48 * time.Hour), journey{}},
		"by a clock that is ahead":         {"n2", ago(-time.Hour), journey{moving: true, left: time.Minute}},
		"what somebody wrote by hand":      {"n2", "yesterday", journey{}},
		"stopped, and nobody cleared it":   {string(ident.NoChassis), ago(2 * time.Hour), journey{}},
		"a pair that lacks its additional": {"n1,", "", journey{}},
	} {
		s := migration.PortState{Requested: c.requested}
		if got := (handover{grace: time.Minute}).journey(s, c.moved, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if got := (handover{}).journey(s, c.moved, now); got != (journey{}) {
			t.Errorf("%s, with the handover off: %+v", name, got)
		}
	}
}

// The key says when the port was given to one chassis; whoever has no connections to take along has none.
func TestPolicyMoved(t *testing.T) {
	const before = "2026-01-01T00:00:00Z"
	now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	vmi := &kubevirtv1.VirtualMachineInstance{}
	vmi.UID = "u1"
	for name, c := range map[string]struct {
		from, to, version, want string
		vmi                     *kubevirtv1.VirtualMachineInstance
	}{
		"stays":            {"n1", "n1", "u1", before, vmi},
		"begins to move":   {"n1", "n1,n2", "u1", before, vmi},
		"is moving":        {"n1,n2", "n1,n2", "u1", before, vmi},
		"arrives":          {"n1,n2", "n2", "u1", "2026-01-02T03:04:05.000006Z", vmi},
		"goes back":        {"n1,n2", "n1", "u1", "2026-01-02T03:04:05.000006Z", vmi},
		"stops":            {"n1", string(ident.NoChassis), "u1", "", vmi},
		"stops on the way": {"n1,n2", string(ident.NoChassis), "u1", "", vmi},
		"is another's":     {"n1", "n2", "u0", "", vmi},
		"has no VMI":       {"n1", "n1", "u1", before, nil},
	} {
		row := &nbdb.LogicalSwitchPort{Options: map[string]string{ident.OptionIfaceIDVer: c.version}, ExternalIDs: map[string]string{ident.KeyMoved: before}}
		o := observed{vmi: c.vmi, rows: map[string]*nbdb.LogicalSwitchPort{podNetwork: row}, env: migration.Env{Now: now}}
		p := migration.PortDecision{Network: podNetwork, Observed: migration.PortState{Requested: c.from}, Want: migration.PortState{Requested: c.to}}
		if got := o.moved(p); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestPolicySooner(t *testing.T) {
	for _, c := range []struct{ a, b, want time.Duration }{{0, 0, 0}, {1, 0, 1}, {0, 1, 1}, {1, 2, 1}, {2, 1, 1}} {
		if got := sooner(c.a, c.b); got != c.want {
			t.Errorf("the sooner of %d and %d is %d", c.a, c.b, got)
		}
	}
}

func TestPolicyHandoverConfig(t *testing.T) {
	if h := newHandover(Defaults()); h.grace != time.Minute {
		t.Errorf("by default the grace is %s, want 1m", h.grace)
	}
	off := Defaults()
	off.HandoverRules = false
	if h := newHandover(off); h.grace != 0 {
		t.Errorf("off, the grace is %s", h.grace)
	}
	for grace, ok := range map[time.Duration]bool{0: false, time.Millisecond: false, time.Second: true, time.Hour: true, 2 * time.Hour: false} {
		c := Defaults()
		c.NBEndpoints, c.SBEndpoints, c.HandoverGrace = []string{"unix:nb"}, []string{"unix:sb"}, grace
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("a grace of %s: %v", grace, err)
		}
	}
}

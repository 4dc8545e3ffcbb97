package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// A record follows the decisions, whichever of them it sees, and its stages stay as they were noted.
func TestProgressed(t *testing.T) {
	start := time.UnixMilli(1_800_000_000_000)
	seen := migration.Snapshot{Migrations: []migration.Migration{{UID: "m", Name: "vmim", Seen: true}}}
	succeeded := migration.Snapshot{Migrations: []migration.Migration{{UID: "m", Name: "vmim", Seen: true, Succeeded: true}}}
	at := func(ms int, p migration.Phase, r migration.Reason) moment {
		when := start.Add(time.Duration(ms) * time.Millisecond)
		return moment{decision: migration.Decision{Migration: "m", Phase: p, Reason: r}, seen: when, written: when.Add(2 * time.Millisecond), wrote: true}
	}
	var st v1alpha1.PortMigrationStatus
	for _, step := range []struct {
		s migration.Snapshot
		m moment
	}{
		{seen, at(0, migration.Settled, migration.ReasonNorthdBehind)},
		{seen, at(10, migration.Prepared, migration.ReasonTargetScheduled)},
		{seen, at(500, migration.Prepared, migration.ReasonTargetScheduled)},
		{seen, at(900, migration.Activated, migration.ReasonTargetActivated)},
		{seen, at(1000, migration.Committed, migration.ReasonTargetReady)},
		{succeeded, at(2000, migration.Committed, migration.ReasonMigrationSucceeded)},
		{seen, at(2001, migration.Prepared, migration.ReasonTargetScheduled)}, // the copy is behind
	} {
		st = progressed(st, step.s, step.m)
	}
	got := map[v1alpha1.StageName]int64{}
	for _, s := range st.Stages {
		got[s.Name] = s.Time.Sub(start).Milliseconds()
	}
	want := map[v1alpha1.StageName]int64{"Scheduled": 0, "Prepared": 12, "Activated": 900, "Ready": 1000, "Committed": 1002, "Completed": 2002}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("stages in ms (-want +got)\n%s", d)
	}
	if st.Result != v1alpha1.MigrationSucceeded || st.Phase != "Committed" {
		t.Errorf("%s, %s", st.Result, st.Phase)
	}
}

// A record whose migration no decision is about any more is concluded from the rows.
func TestConcluded(t *testing.T) {
	running := v1alpha1.PortMigrationStatus{Phase: "Prepared", Result: v1alpha1.MigrationRunning}
	port := func(requested string) []migration.Port {
		return []migration.Port{{Name: "p", State: migration.PortState{
			Requested: requested, Stamp: migration.Stamp{Migration: "m", Source: ident.ChassisName("n1"), Target: ident.ChassisName("n2")},
		}}}
	}
	known := []migration.Migration{{UID: "m", Seen: true}}
	for name, c := range map[string]struct {
		s    migration.Snapshot
		d    migration.Decision
		want v1alpha1.MigrationResult
	}{
		"on the target":    {migration.Snapshot{Ports: port("n2"), Migrations: known}, migration.Decision{Phase: migration.Settled}, v1alpha1.MigrationSucceeded},
		"on the source":    {migration.Snapshot{Ports: port("n1"), Migrations: known}, migration.Decision{Phase: migration.Settled}, v1alpha1.MigrationFailed},
		"still a pair":     {migration.Snapshot{Ports: port("n1,n2"), Migrations: known}, migration.Decision{Phase: migration.Unclear}, v1alpha1.MigrationRunning},
		"the VM stopped":   {migration.Snapshot{Migrations: known}, migration.Decision{Phase: migration.Stopped}, v1alpha1.MigrationFailed},
		"it has vanished":  {migration.Snapshot{Ports: port("n1,n2")}, migration.Decision{Phase: migration.Unclear}, v1alpha1.MigrationFailed},
		"KubeVirt says so": {migration.Snapshot{Migrations: []migration.Migration{{UID: "m", Seen: true, Succeeded: true}}}, migration.Decision{Phase: migration.Settled}, v1alpha1.MigrationSucceeded},
	} {
		if got := concluded(running, c.s, "m", moment{decision: c.d}); got.Result != c.want {
			t.Errorf("%s: %s, want %s", name, got.Result, c.want)
		}
	}
}

func TestLongName(t *testing.T) {
	short, long := longName("vmim", "a"), longName(strings.Repeat("x", 253), "a")
	if short != longName("vmim", "a") || short == longName("vmim", "b") || !strings.HasPrefix(short, "vmim-") {
		t.Errorf("names %q and %q", short, longName("vmim", "b"))
	}
	if len(long) > maxName {
		t.Errorf("%d characters, want at most %d", len(long), maxName)
	}
}

func TestPortPhase(t *testing.T) {
	for name, c := range map[string]struct {
		w      whereabouts
		before v1alpha1.PortPhase
		want   v1alpha1.PortPhase
		node   string
	}{
		"reserved":               {whereabouts{requested: "godwit-none"}, "", v1alpha1.PortReserved, ""},
		"its VM starts":          {whereabouts{requested: "godwit-none", inUse: true}, "", v1alpha1.PortBound, ""},
		"asked for":              {whereabouts{requested: "n1", inUse: true}, v1alpha1.PortBound, v1alpha1.PortBound, ""},
		"claimed":                {whereabouts{requested: "n1", chassis: "n1", inUse: true}, v1alpha1.PortBound, v1alpha1.PortAttached, "n1"},
		"moves":                  {whereabouts{requested: "n1,n2", chassis: "n1", inUse: true}, v1alpha1.PortAttached, v1alpha1.PortMigrating, "n1"},
		"committed, not claimed": {whereabouts{requested: "n2", chassis: "n1", inUse: true}, v1alpha1.PortMigrating, v1alpha1.PortAttached, "n2"},
		"stopped":                {whereabouts{requested: "godwit-none"}, v1alpha1.PortAttached, v1alpha1.PortReserved, ""},
	} {
		if phase, node := c.w.phase(c.before); phase != c.want || node != c.node {
			t.Errorf("%s: %s on %q, want %s on %q", name, phase, node, c.want, c.node)
		}
	}
}

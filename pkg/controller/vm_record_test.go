package controller

import (
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

// A migration that nobody has seen is a pod's own word: a label that changes would make a record each time.
func TestRecordable(t *testing.T) {
	on := func(c ident.ChassisName) migration.Launcher { return migration.Launcher{Chassis: c} }
	seen := migration.Snapshot{Migrations: []migration.Migration{{UID: "m", Seen: true}}}
	told := migration.Snapshot{Migrations: []migration.Migration{{UID: "m"}}} // by the VMI's status alone
	for name, c := range map[string]struct {
		s    migration.Snapshot
		d    migration.Decision
		want bool
	}{
		"it exists":                    {seen, migration.Decision{Migration: "m", Source: on("n1"), Target: on("n2")}, true},
		"nobody has seen it":           {migration.Snapshot{}, migration.Decision{Migration: "m", Source: on("n1"), Target: on("n2")}, false},
		"it is told of":                {told, migration.Decision{Migration: "m", Source: on("n1"), Target: on("n2")}, false},
		"another exists":               {seen, migration.Decision{Migration: "x", Source: on("n1"), Target: on("n2")}, false},
		"its target is placed nowhere": {seen, migration.Decision{Migration: "m", Source: on("n1")}, false},
		"about no migration":           {seen, migration.Decision{}, false},
	} {
		if got := recordable(c.d, c.s); got != c.want {
			t.Errorf("%s: recordable is %v, want %v", name, got, c.want)
		}
	}
}

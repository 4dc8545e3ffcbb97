package controller

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

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

// KubeVirt makes a target pod anew, on another node: the first record fails, and a second is of the other target to the end, whatever of it the controller sees, and however far its cache is behind.
func TestRecordOfATargetThatIsMadeAnew(t *testing.T) {
	source := migration.Launcher{Name: "s", UID: "s-uid", Chassis: "n1"}
	first := migration.Launcher{Name: "t1", UID: "t1-uid", Chassis: "n2", Job: "m"}
	unscheduled := migration.Launcher{Name: "t2", UID: "t2-uid", Job: "m"}
	second := unscheduled
	second.Chassis = "n3"
	running, succeeded := migration.Migration{UID: "m", Name: "vmim", Seen: true}, migration.Migration{UID: "m", Name: "vmim", Seen: true, Succeeded: true}
	row := func(requested, target string) []migration.Port {
		return []migration.Port{{Name: "p", State: migration.PortState{
			Requested: requested, Stamp: migration.Stamp{Migration: "m", Source: "n1", Target: ident.ChassisName(target)},
		}}}
	}
	type step struct {
		s migration.Snapshot
		d migration.Decision
	}
	seeing := func(m migration.Migration, ports []migration.Port, launchers ...migration.Launcher) migration.Snapshot {
		return migration.Snapshot{Migrations: []migration.Migration{m}, Ports: ports, Launchers: launchers}
	}
	to := func(phase migration.Phase, reason migration.Reason, target migration.Launcher) migration.Decision {
		return migration.Decision{Migration: "m", Phase: phase, Reason: reason, Source: source, Target: target}
	}
	begun := step{seeing(running, row("n1", "n2"), source, first), to(migration.Prepared, migration.ReasonTargetScheduled, first)}
	gone := step{seeing(running, row("n1,n2", "n2"), source), to(migration.RolledBack, migration.ReasonTargetGone, migration.Launcher{})}
	alone := step{seeing(running, row("n1", "n2"), source), migration.Decision{Phase: migration.Settled, Reason: migration.ReasonOneLauncher}}
	waits := step{seeing(running, row("n1", "n2"), source, unscheduled), to(migration.Settled, migration.ReasonTargetUnscheduled, unscheduled)}
	again := step{seeing(running, row("n1", "n2"), source, second), to(migration.Prepared, migration.ReasonTargetScheduled, second)}
	moved := step{seeing(succeeded, row("n3", "n3"), source, second), to(migration.Committed, migration.ReasonMigrationSucceeded, second)}
	rests := step{seeing(succeeded, row("n3", "n3"), second), migration.Decision{Phase: migration.Settled, Reason: migration.ReasonOneLauncher}}
	for name, steps := range map[string][]step{
		"everything is seen":              {begun, gone, alone, waits, again, moved, rests},
		"it comes at once":                {begun, gone, again, moved, rests},
		"nobody saw the first one go":     {begun, again, moved, rests},
		"it waits for a node":             {begun, gone, waits, again, moved, rests},
		"the second one is seen at rest":  {begun, again, rests},
		"the controller comes in between": {begun, waits, again, again, moved, moved},
	} {
		for cache, behind := range map[string]interceptor.Funcs{"": {}, ", the cache knows of no record": {
			List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return nil },
		}} {
			t.Run(name+cache, func(t *testing.T) {
				r, api, _ := recording(t)
				o := observed{vmi: &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "vm-uid"}}}
				take := func(s step) {
					t.Helper()
					m := moment{decision: s.d, seen: time.Now(), written: time.Now()}
					if err := r.record(t.Context(), types.NamespacedName{Namespace: "ns", Name: "vm"}, o, s.s, m); err != nil {
						t.Fatal(err)
					}
				}
				for _, s := range steps {
					take(s)
					if cache != "" && s.d.Target.Chassis != "" { // what was created just now is not there yet
						r.api = interceptor.NewClient(api.(client.WithWatch), behind)
						take(s)
						r.api = api
					}
				}
				var list v1alpha1.PortMigrationList
				if err := api.List(t.Context(), &list); err != nil {
					t.Fatal(err)
				}
				got := map[string]string{}
				for _, pm := range list.Items {
					_, back := pm.Status.Stage(v1alpha1.StageRolledBack)
					got[pm.Spec.Target.Pod.Name+" on "+pm.Spec.Target.Node] = fmt.Sprintln(pm.Status.Result, pm.Status.Phase, pm.Status.Reason, back && pm.Spec.Target.Node == "n3")
				}
				want := map[string]string{"t1 on n2": "Failed RolledBack TargetGone false\n", "t2 on n3": "Succeeded Committed MigrationSucceeded false\n"}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("records, with whether the second was ever rolled back (-want +got)\n%s", d)
				}
			})
		}
	}
}

// A new leader whose copy of the pods is the older one takes the first target for the only one: the record of the second stays as it is, for the API server has its pod.
func TestRecordOutlivesAnOldCache(t *testing.T) {
	r, api, _ := recording(t)
	o := observed{vmi: &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "vm-uid"}}}
	source := migration.Launcher{Name: "s", UID: "s-uid", Chassis: "n1"}
	take := func(targets ...migration.Launcher) {
		t.Helper()
		d := migration.Decision{Migration: "m", Phase: migration.Prepared, Source: source, Target: targets[0]}
		s := migration.Snapshot{Migrations: []migration.Migration{{UID: "m", Name: "vmim", Seen: true}}, Launchers: append(targets, source)}
		if err := r.record(t.Context(), types.NamespacedName{Namespace: "ns", Name: "vm"}, o, s, moment{decision: d, seen: time.Now(), written: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	first, second := migration.Launcher{Name: "t1", UID: "t1-uid", Chassis: "n2", Job: "m"}, migration.Launcher{Name: "t2", UID: "t2-uid", Chassis: "n3", Job: "m"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "t2", UID: "t2-uid"}}
	if err := api.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	take(first)
	take(second)
	take(first)
	results := map[string]v1alpha1.MigrationResult{}
	var list v1alpha1.PortMigrationList
	if err := api.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	for _, pm := range list.Items {
		results[pm.Spec.Target.Pod.Name] = pm.Status.Result
	}
	if want := map[string]v1alpha1.MigrationResult{"t1": v1alpha1.MigrationFailed, "t2": v1alpha1.MigrationRunning}; !maps.Equal(results, want) {
		t.Errorf("records %v, want %v", results, want)
	}
}

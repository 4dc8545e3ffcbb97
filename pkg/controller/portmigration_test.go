package controller

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
)

func TestInterruption(t *testing.T) {
	at := func(ms int) *metav1.MicroTime {
		m := metav1.NewMicroTime(time.UnixMilli(int64(ms)))
		return &m
	}
	one, other := v1alpha1.Clock{BootID: "a", Synchronized: true, MaxErrorMicroseconds: 1000}, v1alpha1.Clock{BootID: "b", Synchronized: true, MaxErrorMicroseconds: 500}
	for name, c := range map[string]struct {
		source, target v1alpha1.Observation
		result         v1alpha1.MigrationResult
		want           time.Duration // negative: cannot be told
		uncertainty    time.Duration
	}{
		"one machine":         {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130), FirstFrame: at(131)}, "", 30 * time.Millisecond, 0},
		"two machines":        {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: other, Announced: at(130)}, "", 30 * time.Millisecond, 1500 * time.Microsecond},
		"a clock drifts":      {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Announced: at(130)}, "", 30 * time.Millisecond, -1},
		"the agent announced": {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(230), AnnouncedByAgent: true, FirstFrame: at(240)}, "", 140 * time.Millisecond, 0},
		"heard too early":     {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(230), AnnouncedByAgent: true, FirstFrame: at(120)}, "", 130 * time.Millisecond, 0},
		"opened by the signal, heard before its RARP": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), Announced: at(231), FirstFrame: at(230)}, "", 130 * time.Millisecond, 0,
		},
		"opened by the signal, announces nothing": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), FirstFrame: at(230)}, "", 130 * time.Millisecond, 0,
		},
		"open before it was heard": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), Unblocked: at(107), Announced: at(130)}, "", 30 * time.Millisecond, 0,
		},
		"announced, and open much later": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130), FirstFrame: at(131), Unblocked: at(4100)}, "", 4 * time.Second, 0,
		},
		"opened by the signal, not heard": {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105)}, "", -1, 0},
		"nothing said before":             {v1alpha1.Observation{Clock: one}, v1alpha1.Observation{Clock: one, Announced: at(130)}, "", -1, 0},
		"nothing seen after":              {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one}, "", -1, 0},
		"source after target":             {v1alpha1.Observation{Clock: one, LastFrame: at(200)}, v1alpha1.Observation{Clock: one, Announced: at(130)}, "", -1, 0},
		"failed":                          {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130)}, v1alpha1.MigrationFailed, -1, 0},
	} {
		d, u, ok := interruption(v1alpha1.PortMigrationStatus{Source: &c.source, Target: &c.target, Result: c.result})
		if ok != (c.want >= 0) || ok && (d != c.want || u != c.uncertainty) {
			t.Errorf("%s: %s ± %s, %v; want %s ± %s", name, d, u, ok, c.want, c.uncertainty)
		}
	}
}

// What was an interruption while the VM seemed to arrive is none any more when the migration has failed, and is counted when one has succeeded, once, whatever came first.
func TestInterruptionIsOfMigrationsThatSucceed(t *testing.T) {
	frame, announced := metav1.NewMicroTime(time.UnixMilli(100)), metav1.NewMicroTime(time.UnixMilli(150))
	seen := v1alpha1.PortMigrationStatus{Result: v1alpha1.MigrationRunning, Source: &v1alpha1.Observation{LastFrame: &frame}, Target: &v1alpha1.Observation{Announced: &announced}}
	for name, c := range map[string]struct {
		early   v1alpha1.PortMigrationStatus
		end     migration.Phase
		known   migration.Migration
		want    string
		counted uint64
	}{
		"rolled back after it was heard":       {seen, migration.RolledBack, migration.Migration{UID: "m", Seen: true, Failed: true}, "", 0},
		"succeeded":                            {seen, migration.Committed, migration.Migration{UID: "m", Seen: true, Succeeded: true}, "50.0", 1},
		"succeeded, and the agents told later": {v1alpha1.PortMigrationStatus{Result: v1alpha1.MigrationRunning}, migration.Committed, migration.Migration{UID: "m", Seen: true, Succeeded: true}, "50.0", 1},
	} {
		t.Run(name, func(t *testing.T) {
			vm, api, reg := recording(t)
			pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}, Spec: v1alpha1.PortMigrationSpec{
				VMI: v1alpha1.ObjectName{Name: "vm"}, Migration: v1alpha1.ObjectName{Name: "m", UID: "m"},
			}}
			if err := api.Create(t.Context(), pm); err != nil {
				t.Fatal(err)
			}
			r := &portMigrationReconciler{api: api, keep: 10, metrics: vm.metrics, now: time.Now}
			reconciled := func(change func(*v1alpha1.PortMigrationStatus)) v1alpha1.PortMigrationStatus {
				if err := api.Get(t.Context(), client.ObjectKeyFromObject(pm), pm); err != nil {
					t.Fatal(err)
				}
				change(&pm.Status)
				if err := api.Status().Update(t.Context(), pm); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(pm)}); err != nil {
					t.Fatal(err)
				}
				if err := api.Get(t.Context(), client.ObjectKeyFromObject(pm), pm); err != nil {
					t.Fatal(err)
				}
				return pm.Status
			}
			if st := reconciled(func(st *v1alpha1.PortMigrationStatus) { *st = c.early }); (st.Interruption != nil) != (st.Source != nil) {
				t.Errorf("while it runs: %+v", st.Interruption)
			}
			if n := observations(t, reg, "godwit_migration_interruption_seconds"); n != 0 {
				t.Errorf("%d were counted while it runs", n)
			}
			m := moment{decision: migration.Decision{Migration: "m", Phase: c.end}, seen: time.Now()}
			follow := func(st v1alpha1.PortMigrationStatus) v1alpha1.PortMigrationStatus {
				return progressed(st, migration.Snapshot{Migrations: []migration.Migration{c.known}}, m)
			}
			if err := vm.writeRecord(t.Context(), pm, follow); err != nil {
				t.Fatal(err)
			}
			st := reconciled(func(st *v1alpha1.PortMigrationStatus) { st.Source, st.Target = seen.Source, seen.Target })
			if got := st.Interruption; (got != nil) != (c.want != "") || got != nil && got.Milliseconds != c.want {
				t.Errorf("in the end: %+v, want %q", got, c.want)
			}
			if n := observations(t, reg, "godwit_migration_interruption_seconds"); n != c.counted {
				t.Errorf("%d were counted, want %d", n, c.counted)
			}
		})
	}
}

// recording is a reconciler of VMs that writes records to an API in memory, and its metrics.
func recording(t *testing.T) (*vmReconciler, client.Client, *prometheus.Registry) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	pm := &v1alpha1.PortMigration{}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(pm).WithIndex(pm, indexVMI, func(o client.Object) []string { return []string{vmOf(o).Name} }).Build()
	reg := prometheus.NewRegistry()
	return &vmReconciler{api: api, live: api, log: slog.New(slog.NewTextHandler(t.Output(), nil)), metrics: newMetrics(reg), events: events.NewFakeRecorder(8)}, api, reg
}

// observations is how many a histogram has.
func observations(t *testing.T, reg *prometheus.Registry, name string) uint64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

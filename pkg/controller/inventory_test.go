package controller

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// values are gauges by their labels, of one metric.
func values(of *prometheus.Desc, all []gauge) map[string]float64 {
	out := map[string]float64{}
	for _, g := range all {
		if g.of == of {
			key := ""
			for _, l := range g.labels {
				key += l
			}
			out[key] = g.value
		}
	}
	return out
}

func TestInventoryOfPorts(t *testing.T) {
	port := func(vm string, phase v1alpha1.PortPhase) v1alpha1.Port {
		p := v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: vm}, Status: v1alpha1.PortStatus{Phase: phase}}
		p.Spec.Target.Name, p.Spec.Target.Network = vm, "default"
		return p
	}
	m := newInventoryMetrics()
	got := countPorts(m, []v1alpha1.Port{
		port("runs", v1alpha1.PortAttached), port("moves", v1alpha1.PortMigrating), port("starts", v1alpha1.PortBound), port("lost", v1alpha1.PortBound), port("stopped", v1alpha1.PortReserved),
		port("let go", v1alpha1.PortAttached), port("unplugged", v1alpha1.PortReserved),
	}, map[client.ObjectKey]bool{
		{Namespace: "shop", Name: "runs"}: true, {Namespace: "shop", Name: "moves"}: true, {Namespace: "shop", Name: "lost"}: true, {Namespace: "else", Name: "starts"}: true,
		{Namespace: "shop", Name: "let go"}: true, {Namespace: "shop", Name: "unplugged"}: true,
	}, map[ident.PortName]bool{"vm/shop/runs/default": true, "vm/shop/moves/default": true, "vm/shop/let go/default": false})
	if diff := cmp.Diff(map[string]float64{"Reserved": 2, "Bound": 2, "Attached": 2, "Migrating": 1}, values(m.ports, got)); diff != "" {
		t.Errorf("phases: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]float64{"": 2}, values(m.adrift, got)); diff != "" {
		t.Errorf("without a chassis: -want +got:\n%s", diff)
	}
}

func TestInventoryOfMigrations(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	record := func(port, phase string, result v1alpha1.MigrationResult, age time.Duration) v1alpha1.PortMigration {
		pm := v1alpha1.PortMigration{Status: v1alpha1.PortMigrationStatus{Phase: phase, Result: result, Stages: []v1alpha1.Stage{
			{Name: v1alpha1.StageScheduled, Time: metav1.NewMicroTime(now.Add(-age))},
		}}}
		pm.Spec.Ports = []v1alpha1.MigratedPort{{Network: "default", Name: port}}
		return pm
	}
	m := newInventoryMetrics()
	pins := map[string]string{"vm/a": "n1,n2", "vm/b": "n1,n2", "vm/c": "n1,n2", "vm/d": "n1", "pod/e": ""}
	got := countMigrations(m, []v1alpha1.PortMigration{
		record("vm/a", "Prepared", v1alpha1.MigrationRunning, time.Minute), record("vm/b", "Activated", v1alpha1.MigrationRunning, 3*time.Minute),
		record("vm/c", "Committed", v1alpha1.MigrationSucceeded, time.Hour),
	}, pins, now)
	if diff := cmp.Diff(map[string]float64{"Prepared": 1, "Activated": 1, "PostCopy": 0, "Committed": 0, "RolledBack": 0}, values(m.moving, got)); diff != "" {
		t.Errorf("in progress: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]float64{"": 180}, values(m.longest, got)); diff != "" {
		t.Errorf("longest: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]float64{"": 1}, values(m.stale, got)); diff != "" {
		t.Errorf("stale pins, of vm/c alone: -want +got:\n%s", diff)
	}
}

// TestInventoryOfLastMigrations: of each VM the last one.
func TestInventoryOfLastMigrations(t *testing.T) {
	at := func(second int) metav1.MicroTime {
		return metav1.NewMicroTime(time.Unix(int64(1000+second), 500000000))
	}
	record := func(vm string, began, ended int, ms string) v1alpha1.PortMigration {
		pm := v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}}
		pm.Spec.VMI.Name = vm
		pm.Status.Stages = []v1alpha1.Stage{{Name: v1alpha1.StageScheduled, Time: at(began)}}
		if ended > 0 {
			pm.Status.Stages = append(pm.Status.Stages, v1alpha1.Stage{Name: v1alpha1.StageCompleted, Time: at(ended)})
		}
		if ms != "" {
			pm.Status.Interruption = &v1alpha1.Interruption{Milliseconds: ms}
		}
		return pm
	}
	m := newInventoryMetrics()
	got := lastMigrations(m, []v1alpha1.PortMigration{record("a", 10, 12, "63.8"), record("a", 1, 3, "9.1"), record("b", 5, 0, "")})
	for _, c := range []struct {
		name string
		of   *prometheus.Desc
		want map[string]float64
	}{
		{"start", m.started, map[string]float64{"shopa": 1010.5, "shopb": 1005.5}},
		{"end", m.ended, map[string]float64{"shopa": 1012.5}},
		{"interruption", m.interruption, map[string]float64{"shopa": 0.0638}},
	} {
		if diff := cmp.Diff(c.want, values(c.of, got)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
}

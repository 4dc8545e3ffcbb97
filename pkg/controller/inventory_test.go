package controller

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
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
	}, nil, map[client.ObjectKey]bool{
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

// told is a Collector of gauges.
type told []gauge

func (told) Describe(chan<- *prometheus.Desc) {}

func (t told) Collect(to chan<- prometheus.Metric) {
	for _, g := range t {
		to <- prometheus.MustNewConstMetric(g.of, prometheus.GaugeValue, g.value, g.labels...)
	}
}

// TestInventoryOfPortsForOneInterface: of several Ports for one interface the one that has it is told of, and no sample twice, for which a registry would refuse them all.
func TestInventoryOfPortsForOneInterface(t *testing.T) {
	port := func(name, target, node string, phase v1alpha1.PortPhase) v1alpha1.Port {
		p := v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}, Status: v1alpha1.PortStatus{Phase: phase, Node: node}}
		p.Spec.Target.Name, p.Spec.Target.Network = target, "default"
		return p
	}
	rows := map[ident.PortName]*nbdb.LogicalSwitchPort{
		"vm/shop/stopped/default": {ExternalIDs: map[string]string{ident.KeyUID: "b"}}, "vm/shop/lost/default": {ExternalIDs: map[string]string{ident.KeyUID: "e"}},
	}
	m := newInventoryMetrics()
	got := countPorts(m, []v1alpha1.Port{
		port("a", "stopped", "", v1alpha1.PortReserved), port("b", "stopped", "", v1alpha1.PortReserved), // moved to it
		port("c", "new", "", ""), port("d", "new", "", ""), // made together, and not served yet
		port("e", "lost", "n1", v1alpha1.PortAttached), port("f", "lost", "", ""),
	}, rows, map[client.ObjectKey]bool{{Namespace: "shop", Name: "lost"}: true}, nil)
	registry := prometheus.NewRegistry()
	registry.MustRegister(told(got))
	if _, err := registry.Gather(); err != nil {
		t.Errorf("what is told cannot be scraped: %v", err)
	}
	if diff := cmp.Diff(map[string]float64{"shopstoppeddefaultReserved": 1, "shopnewdefault": 1, "shoplostdefaultn1Attached": 1}, values(m.state, got)); diff != "" {
		t.Errorf("states: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]float64{"Reserved": 2, "Bound": 0, "Attached": 1, "Migrating": 0}, values(m.ports, got)); diff != "" {
		t.Errorf("phases, of all Ports: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]float64{"": 1}, values(m.adrift, got)); diff != "" {
		t.Errorf("without a chassis: -want +got:\n%s", diff)
	}
}

// What of the metrics cannot be told does not take the others with it, and is not kept quiet.
func TestMetricsThatCannotBeTold(t *testing.T) {
	m := newInventoryMetrics()
	reg := prometheus.NewRegistry()
	reg.MustRegister(told{count(m.chassis, 3), count(m.stale, 0), count(m.stale, 1)})
	var log bytes.Buffer
	var opts promhttp.HandlerOpts
	tolerant(slog.New(slog.NewTextHandler(&log, nil)))(&opts)
	got := httptest.NewRecorder()
	promhttp.HandlerFor(reg, opts).ServeHTTP(got, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if text := got.Body.String(); got.Code != http.StatusOK || !strings.Contains(text, "godwit_chassis 3") {
		t.Errorf("status %d: %s", got.Code, text)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "godwit_stale_pins") {
		t.Errorf("the log says %q", log.String())
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
	rows := map[ident.PortName]*nbdb.LogicalSwitchPort{}
	for name, pin := range map[ident.PortName]string{"vm/a": "n1,n2", "vm/b": "n1,n2", "vm/c": "n1,n2", "vm/d": "n1", "pod/e": ""} {
		rows[name] = &nbdb.LogicalSwitchPort{Options: map[string]string{ident.OptionRequestedChassis: pin}}
	}
	got := countMigrations(m, []v1alpha1.PortMigration{
		record("vm/a", "Prepared", v1alpha1.MigrationRunning, time.Minute), record("vm/b", "Activated", v1alpha1.MigrationRunning, 3*time.Minute),
		record("vm/c", "Committed", v1alpha1.MigrationSucceeded, time.Hour),
	}, rows, now)
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

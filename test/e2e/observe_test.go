package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/dist/grafana"
	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/prometheus"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// scrapeInterval of the tests' Prometheus.
const scrapeInterval = time.Second

// rulesFile has the alerts.
func rulesFile(t *testing.T) string {
	t.Helper()
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(top, "dist/prometheus/rules.yaml")
}

// observer is a Prometheus that scrapes the lab, and goes by a file of rules, until the test ends.
func observer(t *testing.T, rules string) *prometheus.Server {
	t.Helper()
	namespace, err := cluster.Namespace("hub")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string][]string{}
	for _, n := range cluster.NodeNames() {
		ip := cluster.NodeIPs(n)[0].String()
		targets["agent"] = append(targets["agent"], net.JoinHostPort(ip, "9476"))
		targets["controller"] = append(targets["controller"], net.JoinHostPort(ip, "9477"))
	}
	s, err := prometheus.Start(t.Context(), prometheus.Config{
		Namespace: namespace, Dir: t.TempDir(), Targets: targets, Interval: scrapeInterval, Rules: rules,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// series asks for what an expression was over a while; one series at least, with a value that is a number.
func series(ctx context.Context, api promv1.API, expr string, r promv1.Range) (model.Matrix, error) {
	value, _, err := api.QueryRange(ctx, expr, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	matrix, ok := value.(model.Matrix)
	if !ok {
		return nil, fmt.Errorf("%s: it is a %s", expr, value.Type())
	}
	for _, one := range matrix {
		for _, v := range one.Values {
			if !math.IsNaN(float64(v.Value)) {
				return matrix, nil
			}
		}
	}
	return nil, fmt.Errorf("%s: no data", expr)
}

// chosen is a query with the dashboards' variables filled in: one VM, everything of it.
func chosen(expr, namespace, vm string) string {
	return strings.NewReplacer("$namespace", namespace, "$vm", vm, "$node", ".*", "$__rate_interval", "15s").Replace(expr)
}

// An operator's Prometheus sees a migration: every panel of the dashboards has data, the band of the migration is where the PortMigration says that it was, and the VM's NIC is
// counted once.
func TestObserveMigration(t *testing.T) {
	api := observer(t, rulesFile(t)).API
	s := newScene(t, "observe", 0)
	setScene(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	talking := make(chan error, 1)
	go func() { talking <- talk(ctx, s) }()
	eventually(t, settleTimeout, func(ctx context.Context) error { // what counts up is seen to do so only if it was seen before
		for _, known := range []string{`count_over_time(godwit_ovn_connected{database="northbound"}[15s]) >= 3`, fmt.Sprintf("count(count_over_time(godwit_agent_ready[15s]) >= 3) == %d", len(cluster.NodeNames()))} {
			if _, err := series(ctx, api, known, promv1.Range{Start: time.Now(), End: time.Now(), Step: time.Second}); err != nil {
				return err
			}
		}
		return nil
	})
	began := time.Now().Add(-10 * time.Second)
	shuttle(t, s, 0)
	pm := lastRecord(t, s)
	eventually(t, settleTimeout, func(ctx context.Context) error { // a rate wants two scrapes after the end, and the band's lag is nothing at the end
		_, err := series(ctx, api, chosen(`rate(godwit_vm_nic_transmit_bytes_total{namespace="$namespace",vm="$vm"}[15s])`, s.Namespace, s.VM.Name), promv1.Range{Start: time.Now(), End: time.Now(), Step: time.Second})
		return err
	})
	t.Run("band", func(t *testing.T) { band(t, api, s, pm) })
	t.Run("one series", func(t *testing.T) { oneSeries(t, api, s, pm) })
	t.Run("panels", func(t *testing.T) { panels(t, api, s, began) }) // after one series, which waits until there is something to see of what came after
	t.Run("alerts", func(t *testing.T) { alerts(t, api, pm) })
	cancel()
	if err := <-talking; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// lastRecord is the PortMigration of the scene's VM, complete.
func lastRecord(t *testing.T, s *passage.Scene) *v1alpha1.PortMigration {
	t.Helper()
	var pm *v1alpha1.PortMigration
	eventually(t, settleTimeout, func(ctx context.Context) error {
		var list v1alpha1.PortMigrationList
		if err := cluster.api.List(ctx, &list, client.InNamespace(s.Namespace)); err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("there are %d PortMigrations", len(list.Items))
		}
		if pm = &list.Items[0]; !pm.Status.Over() || pm.Status.Interruption == nil || pm.Status.Target.Unblocked == nil {
			return fmt.Errorf("PortMigration %s is not complete: %+v", pm.Name, pm.Status)
		}
		return nil
	})
	return pm
}

// panels asks for what each panel shows, and draws it into out/observe.
func panels(t *testing.T, api promv1.API, s *passage.Scene, began time.Time) {
	for _, d := range grafana.All() {
		var graphs []prometheus.Graph
		for _, p := range d.Panels {
			if p.Central {
				continue // here OVN's databases run without pods; test/install asks for these metrics
			}
			g := prometheus.Graph{Title: p.Title, Unit: p.Unit, Colors: map[int]string{}}
			for _, state := range p.States {
				g.Colors[state.Value] = state.Color
			}
			for _, q := range p.Queries {
				eventually(t, settleTimeout, func(ctx context.Context) error {
					matrix, err := series(ctx, api, chosen(q.Expr, s.Namespace, s.VM.Name), promv1.Range{Start: began, End: time.Now(), Step: 200 * time.Millisecond})
					if err != nil {
						return err
					}
					for _, one := range matrix {
						g.Lines = append(g.Lines, prometheus.Line{Name: legend(q.Legend, one.Metric), Points: one.Values})
					}
					return nil
				})
			}
			graphs = append(graphs, g)
		}
		draw(t, d, graphs, began)
	}
}

// legend is a series' name as Grafana makes it.
func legend(format string, labels model.Metric) string {
	for name, value := range labels {
		format = strings.ReplaceAll(format, "{{"+string(name)+"}}", string(value))
	}
	return format
}

func draw(t *testing.T, d grafana.Dashboard, graphs []prometheus.Graph, began time.Time) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "out", "observe")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, d.UID+".svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(prometheus.WriteSVG(f, d.Title, graphs, began, time.Now()), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// band compares the edges of the state timeline's band with the record's: within a second.
func band(t *testing.T, api promv1.API, s *passage.Scene, pm *v1alpha1.PortMigration) {
	from, okFrom := pm.Status.Stage(v1alpha1.StageScheduled)
	to, okTo := pm.Status.Stage(v1alpha1.StageCompleted)
	if !okFrom || !okTo {
		t.Fatalf("the record lacks a stage: %+v", pm.Status.Stages)
	}
	state := grafana.All()[0].Panels[0].Queries[0].Expr
	eventually(t, settleTimeout, func(ctx context.Context) error {
		matrix, err := series(ctx, api, chosen(state, s.Namespace, s.VM.Name), promv1.Range{Start: from.Add(-5 * time.Second), End: to.Add(5 * time.Second), Step: 100 * time.Millisecond})
		if err != nil {
			return err
		}
		var first, last time.Time
		for _, one := range matrix {
			for _, v := range one.Values {
				if v.Value == 3 {
					if first.IsZero() || v.Timestamp.Time().Before(first) {
						first = v.Timestamp.Time()
					}
					if v.Timestamp.Time().After(last) {
						last = v.Timestamp.Time()
					}
				}
			}
		}
		if first.Sub(from).Abs() > time.Second || last.Sub(to).Abs() > time.Second {
			return fmt.Errorf("the band is from %s to %s, the migration was from %s to %s", first.Format(time.StampMilli), last.Format(time.StampMilli), from.Format(time.StampMilli), to.Format(time.StampMilli))
		}
		t.Logf("the band begins %s and ends %s beside the record's times", first.Sub(from).Round(time.Millisecond), last.Sub(to).Round(time.Millisecond))
		return nil
	})
}

// oneSeries: the VM's NIC was told of once at any time, but for the scrapes around the moment in which it changed its node.
func oneSeries(t *testing.T, api promv1.API, s *passage.Scene, pm *v1alpha1.PortMigration) {
	turned, ok := pm.Status.Stage(v1alpha1.StageActivated)
	if !ok {
		t.Fatalf("the record lacks a stage: %+v", pm.Status.Stages)
	}
	const around = 3 * scrapeInterval
	began, _ := pm.Status.Stage(v1alpha1.StageScheduled)
	const wanted = 3 // samples of what came after
	eventually(t, around+settleTimeout, func(ctx context.Context) error {
		matrix, err := series(ctx, api, chosen(`count by (namespace, vm, network) (godwit_vm_nic_receive_packets_total{namespace="$namespace",vm="$vm"})`, s.Namespace, s.VM.Name),
			promv1.Range{Start: began, End: time.Now(), Step: 500 * time.Millisecond})
		if err != nil {
			return err
		}
		if len(matrix) != 1 {
			return fmt.Errorf("the VM has %d NICs", len(matrix))
		}
		after := 0
		for _, v := range matrix[0].Values {
			switch at := v.Timestamp.Time().Sub(turned); {
			case at.Abs() < around:
			case v.Value == 1 && at > 0:
				after++
			case v.Value != 1 && at < patience(around): // scrapes may be late
				after = 0
			case v.Value != 1:
				t.Errorf("%s after the activation there were %v series", at, v.Value)
			}
		}
		if after < wanted {
			return fmt.Errorf("%d samples of what came after", after)
		}
		return nil
	})
}

// interruptionAlarm is the alert of interruptions of more than a second. An emulated VM on a busy machine may be stopped for that long by QEMU itself.
const interruptionAlarm, interruptionAlarmed = "GodwitMigrationInterruption", 1000

// claimAlarm is the alert of claims that were undone. To a Prometheus that has just begun those are new that another test has made before.
const claimAlarm = "GodwitForbiddenClaim"

// alerts: Prometheus has taken the rules, and of a cluster that is well none fires.
func alerts(t *testing.T, api promv1.API, pm *v1alpha1.PortMigration) {
	interrupted, err := strconv.ParseFloat(pm.Status.Interruption.Milliseconds, 64)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := api.Rules(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			a, ok := r.(promv1.AlertingRule)
			if !ok {
				t.Errorf("%v is no alert", r)
				continue
			}
			count++
			if a.Health != promv1.RuleHealthGood {
				t.Errorf("%s: %s %s", a.Name, a.Health, a.LastError)
			}
			if a.Name == claimAlarm {
				continue
			}
			if a.State == string(promv1.AlertStateFiring) && (a.Name != interruptionAlarm || interrupted < interruptionAlarmed) {
				t.Errorf("%s fires: %v", a.Name, a.Alerts)
			}
		}
	}
	if count == 0 {
		t.Error("there are no alerts")
	}
}

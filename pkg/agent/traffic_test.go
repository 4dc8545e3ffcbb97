package agent

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// sample collects one metric's series, their labels' values in order of the labels' names.
func sample(t *testing.T, c prometheus.Collector, name string) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				key += "/" + l.GetValue()
			}
			out[key] = m.GetCounter().GetValue()
		}
	}
	return out
}

// trafficOf is what the agent of a node tells whose launcher web-1 has a link, and where a pod has one too.
func trafficOf(t *testing.T, of map[side]v1alpha1.PortMigrationStatus) *traffic {
	t.Helper()
	m, err := newMigrations(Sources{}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	for s, status := range of {
		pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: string(s)}, Status: status}
		pm.Spec.Source.Pod.Name, pm.Spec.Target.Pod.Name = "web-0", "web-1"
		if s == sideSource {
			pm.Spec.Source.Pod.Name, pm.Spec.Target.Pod.Name = "web-1", "web-2"
		}
		if err := m[s].GetStore().Add(pm); err != nil {
			t.Fatal(err)
		}
	}
	port := func(link string, id ident.PortName, pod string) ovs.PortStatus {
		return ovs.PortStatus{Port: ovs.Port{Name: link, ID: id, Owner: ovs.Owner{Pod: pod}}}
	}
	return &traffic{
		migrations: m, log: slog.New(slog.DiscardHandler),
		ports: func() ([]ovs.PortStatus, error) {
			return []ovs.PortStatus{
				port("gw1", ident.VMPort("shop", "web", "default"), "shop/web-1"), port("gw2", ident.VMPort("shop", "web", "storage"), "shop/web-1"),
				port("gw3", ident.PodPort("shop", "cart", "default"), "shop/cart"), port("gw4", ident.VMPort("shop", "linkless", "default"), "shop/linkless-1"),
			}, nil
		},
		counters: func() (map[string]netdev.Counters, error) {
			return map[string]netdev.Counters{"gw1": {RXBytes: 100, TXBytes: 7}, "gw2": {RXBytes: 20}, "gw3": {RXBytes: 3}}, nil
		},
	}
}

// TestTrafficHasOneSeriesForEachNIC: of two launchers, one node tells.
func TestTrafficHasOneSeriesForEachNIC(t *testing.T) {
	stages := func(result v1alpha1.MigrationResult, names ...v1alpha1.StageName) v1alpha1.PortMigrationStatus {
		st := v1alpha1.PortMigrationStatus{Result: result}
		for i, n := range names {
			st.Stages = append(st.Stages, v1alpha1.Stage{Name: n, Time: metav1.NewMicroTime(time.UnixMilli(int64(i)))})
		}
		return st
	}
	here := map[string]float64{"/shop/default/web": 100, "/shop/storage/web": 20}
	// By labels in order of their names: namespace, network, vm.
	for _, c := range []struct {
		name           string
		status         v1alpha1.PortMigrationStatus
		source, target map[string]float64
	}{
		{"prepared", stages(v1alpha1.MigrationRunning, v1alpha1.StageScheduled, v1alpha1.StagePrepared), here, map[string]float64{}},
		{"activated", stages(v1alpha1.MigrationRunning, v1alpha1.StagePrepared, v1alpha1.StageActivated), map[string]float64{}, here},
		{"ready, and nobody saw it activated", stages(v1alpha1.MigrationRunning, v1alpha1.StagePrepared, v1alpha1.StageReady), map[string]float64{}, here},
		{"succeeded", stages(v1alpha1.MigrationSucceeded, v1alpha1.StageCommitted), map[string]float64{}, here},
		{"rolled back", stages(v1alpha1.MigrationRunning, v1alpha1.StageActivated, v1alpha1.StageRolledBack), here, map[string]float64{}},
		{"failed", stages(v1alpha1.MigrationFailed, v1alpha1.StageActivated), here, map[string]float64{}},
		{"committed, and rolled back", stages(v1alpha1.MigrationRunning, v1alpha1.StageActivated, v1alpha1.StageCommitted, v1alpha1.StageRolledBack), here, map[string]float64{}},
		{"vanished, and arrived", stages(v1alpha1.MigrationFailed, v1alpha1.StagePrepared, v1alpha1.StageRolledBack, v1alpha1.StageCommitted), map[string]float64{}, here},
	} {
		t.Run(c.name, func(t *testing.T) {
			for s, want := range map[side]map[string]float64{sideSource: c.source, sideTarget: c.target} {
				got := sample(t, trafficOf(t, map[side]v1alpha1.PortMigrationStatus{s: c.status}), "godwit_vm_nic_transmit_bytes_total")
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: -want +got:\n%s", s, diff)
				}
			}
		})
	}
	t.Run("there and on", func(t *testing.T) {
		arrived := stages(v1alpha1.MigrationSucceeded, v1alpha1.StageCommitted)
		for _, second := range []v1alpha1.PortMigrationStatus{stages(v1alpha1.MigrationRunning, v1alpha1.StagePrepared), arrived} {
			want := here
			if second.Over() {
				want = map[string]float64{}
			}
			got := sample(t, trafficOf(t, map[side]v1alpha1.PortMigrationStatus{sideTarget: arrived, sideSource: second}), "godwit_vm_nic_transmit_bytes_total")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		}
	})
	t.Run("the VM's view", func(t *testing.T) {
		got := sample(t, trafficOf(t, nil), "godwit_vm_nic_receive_bytes_total")
		if diff := cmp.Diff(map[string]float64{"/shop/default/web": 7, "/shop/storage/web": 0}, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// TestTrafficThatCannotBeRead leaves the other metrics alone.
func TestTrafficThatCannotBeRead(t *testing.T) {
	tr := trafficOf(t, nil)
	tr.counters = func() (map[string]netdev.Counters, error) { return nil, errors.New("netlink is gone") }
	if got := sample(t, tr, "godwit_vm_nic_transmit_bytes_total"); len(got) != 0 {
		t.Errorf("it told %v", got)
	}
}

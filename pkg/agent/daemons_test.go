package agent

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// familiesOf are the names of what a collector tells.
func familiesOf(t *testing.T, c prometheus.Collector) map[string]int {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range all {
		out[f.GetName()] = len(f.GetMetric())
	}
	return out
}

// seriesOf are the values of a metric, by labels in order of their names.
func seriesOf(t *testing.T, c prometheus.Collector, name string) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				key += "/" + l.GetValue()
			}
			out[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// TestDaemonsTellOfThemselves: a real ovn-controller and a real ovs-vswitchd have every metric, and ovn-controller is connected.
func TestDaemonsTellOfThemselves(t *testing.T) {
	central := ovntest.Central(t)
	host := ovntest.Host(t, central, "node1")
	host.ConfigureChassis(t, central)
	d := newDaemons(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), host.RunDir, host.RunDir)
	working := func() string { // the daemons' threads sum up what they count about once a second
		switch {
		case seriesOf(t, d, "godwit_ovn_controller_connected")[""] != 1:
			return "ovn-controller is not connected"
		case seriesOf(t, d, "godwit_ovs_flows")[""] == 0:
			return "there are no flows"
		case seriesOf(t, d, "godwit_ovn_task_runs_total")["/ovn-controller/flow-generation"] == 0:
			return "ovn-controller has generated no flows"
		case seriesOf(t, d, "godwit_ovn_controller_engine_runs_total")["/bindings/recomputed"] == 0:
			return "ovn-controller has not looked at what is bound"
		case seriesOf(t, d, "godwit_ovs_events_total")["/bridge_reconfigure"] == 0:
			return "ovs-vswitchd has configured no bridge"
		}
		return ""
	}
	for deadline := time.Now().Add(time.Minute); working() != ""; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", working(), familiesOf(t, d))
		}
	}
	want := map[string]int{
		"godwit_ovn_daemon_up": 2, "godwit_ovn_controller_connected": 1, "godwit_ovn_controller_engine_runs_total": 3 * len(controllerNodes),
		"godwit_ovn_task_seconds": 3 * len(controllerTasks), "godwit_ovn_task_runs_total": len(controllerTasks),
		"godwit_ovs_flows": 1, "godwit_ovs_datapath_packets_total": 3, "godwit_ovs_datapath_flows": 1, "godwit_ovs_datapath_flow_limit": 1, "godwit_ovs_datapath_dump_seconds": 1,
		"godwit_ovs_memory_objects": len(switchMemory), "godwit_ovs_events_total": len(switchEvents),
	}
	got := familiesOf(t, d)
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s has %d series, want %d", name, got[name], n)
		}
	}
}

// TestDaemonsThatAreNotThere: no socket, no series and nothing in the log; a socket that nobody serves, one series and one line.
func TestDaemonsThatAreNotThere(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	d := newDaemons(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), dir, dir)
	if got := familiesOf(t, d); len(got) != 0 || log.Len() != 0 {
		t.Errorf("without a socket: %v, %s", got, log.String())
	}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "ovn-controller.1.ctl"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := seriesOf(t, d, "godwit_ovn_daemon_up"); len(got) != 1 || got["/ovn-controller"] != 0 {
			t.Errorf("with a dead socket: %v", got)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("the log has %d lines:\n%s", n, log.String())
	}
}

// TestDaemonThatHangs: of one that takes a question and does not answer, as one that is stopped, the scrape does not wait to hear; the next one has what came of it.
func TestDaemonThatHangs(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	hung, err := net.Listen("unix", filepath.Join(dir, "ovn-controller.1.ctl")) // it accepts nothing; the kernel takes what is written
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hung.Close() })
	d := newDaemons(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), dir, dir)
	start := time.Now()
	got := seriesOf(t, d, "godwit_ovn_daemon_up")
	if took := time.Since(start); len(got) != 0 || took >= scrapeTimeout {
		t.Errorf("%v after %s, want nothing yet, and well before %s", got, took, scrapeTimeout)
	}
	for deadline := start.Add(time.Minute); len(got) == 0; got = seriesOf(t, d, "godwit_ovn_daemon_up") {
		if time.Now().After(deadline) {
			t.Fatal("nothing was told of it")
		}
	}
	if up, told := got["/ovn-controller"]; up != 0 || !told || len(got) != 1 {
		t.Errorf("told %v", got)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "ovn-controller.1.ctl: it does not answer") {
		t.Errorf("the log has %d lines:\n%s", n, log.String())
	}
}

package ovs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded is what a daemon of OVN 23.03 or Open vSwitch 3.1 said.
func recorded(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParseStats(t *testing.T) {
	watches := ParseStopwatches(recorded(t, "stopwatch"))
	if diff := cmp.Diff(Stopwatch{Samples: 61, Max: 0.127, P95: 0.047279391, Recent: 0.000688614, Average: 0.002799954}, watches["ovn-northd-loop"], approximately()); diff != "" || len(watches) != 12 {
		t.Errorf("%d stopwatches; %s", len(watches), diff)
	}
	want := map[string]EngineRuns{
		"NB_address_set": {Recomputed: 63}, "NB_port_group": {Recomputed: 63}, "NB_nb_global": {Recomputed: 63}, "NB_copp": {Recomputed: 63}, "NB_logical_switch": {Recomputed: 63},
		"NB_logical_switch_port": {Recomputed: 60}, "lflow": {Recomputed: 23}, "northd_output": {Recomputed: 5, Computed: 19},
	}
	if diff := cmp.Diff(want, ParseEngine(recorded(t, "engine"))); diff != "" {
		t.Error(diff)
	}
	if got := ParseEngine("Node: lflow\n- recompute:            1\n- compute:              2\n- cancel:               3\n"); got["lflow"] != (EngineRuns{1, 2, 3}) {
		t.Errorf("as OVN 26.03 writes it: %v", got)
	}
	events := ParseCoverage(recorded(t, "coverage"))
	if events["drop_action_of_pipeline"] != 16 || events["datapath_drop_userspace_action_error"] != 3 || events["netlink_sent"] != 608 || len(events) != 54 {
		t.Errorf("%d events: %v", len(events), events)
	}
	if diff := cmp.Diff([]Datapath{{Name: "netdev@ovs-netdev", Hit: 40, Missed: 32, Lost: 2}}, ParseDatapaths(recorded(t, "dpctl"))); diff != "" {
		t.Error(diff)
	}
	kernel := "system@ovs-system:\n  lookups: hit:1 missed:2 lost:3\n  flows: 4\n  masks: hit:5 total:6 hit/pkt:7.00\n  port 0: ovs-system (internal)\nnetdev@x:\n  lookups: hit:9 missed:0 lost:0\n  flows: 8\n"
	if diff := cmp.Diff([]Datapath{{Name: "system@ovs-system", Hit: 1, Missed: 2, Lost: 3, Flows: 4}, {Name: "netdev@x", Hit: 9, Flows: 8}}, ParseDatapaths(kernel)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]FlowCare{"netdev@ovs-netdev": {Limit: 24000, Dump: 0.001}}, ParseUpcalls(recorded(t, "upcall"))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]float64{"handlers": 1, "idl-cells-Open_vSwitch": 468, "ofconns": 3, "ports": 7, "revalidators": 1, "rules": 628}, ParseMemory(recorded(t, "memory"))); diff != "" {
		t.Error(diff)
	}
	if got := ParseMemory("ports:3 rules:9 udpif keys:12\n"); got["udpif keys"] != 12 || got["rules"] != 9 {
		t.Errorf("a kind of two words: %v", got)
	}
}

func TestParseVersion(t *testing.T) {
	for said, want := range map[string]string{
		"ovn-controller 23.03.1\nOpen vSwitch Library 3.1.0\nOpenFlow versions 0x6:0x6\n": "23.03.1", "ovn-controller 25.09.3-2.el9": "25.09.3-2.el9", "": "", "ovn-controller": "",
	} {
		if got := ParseVersion(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

// TestParseStatsOfNothing: what is not understood is left out.
func TestParseStatsOfNothing(t *testing.T) {
	const text = "no such thing\n  Total samples: 3\n- recompute: 5\n  flows: 9\n  dump duration : 7ms\n"
	if n := len(ParseStopwatches(text)) + len(ParseEngine(text)) + len(ParseCoverage(text)) + len(ParseDatapaths(text)) + len(ParseUpcalls(text)); n != 0 {
		t.Errorf("%d things were found", n)
	}
}

func approximately() cmp.Option {
	return cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic/traffictest"
)

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  string
		want size
		err  string
	}{
		"nothing said":     {nil, "", size{20, 18, 6}, ""},
		"VMS":              {nil, "4", size{4, 4, 6}, ""},
		"flags go first":   {[]string{"-vms", "3", "-singles", "2"}, "4", size{3, 3, 2}, ""},
		"some look on":     {[]string{"-vms", "3", "-drained", "2"}, "", size{3, 2, 6}, ""},
		"more than all":    {[]string{"-vms", "3", "-drained", "4"}, "", size{}, "4 VMs on the node"},
		"none":             {nil, "0", size{}, "0 VMs"},
		"too many":         {nil, "41", size{}, "41 VMs"},
		"no number":        {nil, "many", size{}, "VMS=many"},
		"no way back home": {[]string{"-singles", "3"}, "", size{}, "3 single migrations"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("VMS", c.env)
			got, err := options(c.args)
			switch {
			case c.err == "" && (err != nil || got != c.want):
				t.Errorf("options: %+v, %v: want %+v", got, err, c.want)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("options: %+v, %v: want an error with %q", got, err, c.err)
			}
		})
	}
}

// Probes go every 5 ms; those of 500 to 530 ms are lost. What is lost long after QEMU's stop is not the migration's.
func TestMeasure(t *testing.T) {
	start := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	p := traffictest.Probes("10.244.0.2", start, 500, 530)
	for name, c := range map[string]struct {
		stopped, resumed int
		want             float64
	}{"around it": {505, 515, 30}, "soon after": {100, 110, 30}, "long before": {700, 710, 0}, "long after": {0, -10, 0}} {
		m := move{stopped: lab.Stop{Stopped: at(c.stopped), Resumed: at(c.resumed)}}
		if name == "long after" {
			m.stopped.Resumed = at(c.resumed).Add(-lateLoss)
		}
		if m.measure(&p); m.Unanswered != c.want {
			t.Errorf("%s: %v ms without an answer, want %v", name, m.Unanswered, c.want)
		}
	}
}

func TestSummary(t *testing.T) {
	recorded := 30.0
	r := summary([]move{{Stop: 5, Unanswered: 20}}, []move{{Stop: 10, Unanswered: 40, Recorded: &recorded}, {Stop: 20, Unanswered: 30}})
	for i, want := range []map[string]float64{
		{"n": 2, p50: 20, p90: 20, most: 20, singleCount: 1, singleMedian: 5, singleMost: 5},
		{"n": 2, p50: 40, p90: 40, most: 40, singleCount: 1, singleMedian: 20, singleMost: 20},
		{"n": 2, p50: 30, p90: 30, most: 30, singleCount: 1, singleMedian: 15, singleMost: 15},
		{"n": 1, p50: 30, p90: 30, most: 30},
		{"n": 1, p50: 20, p90: 20, most: 20},
	} {
		for column, v := range want {
			if got, ok := r.Rows[i].Values[column]; !ok || got != v {
				t.Errorf("%s, %s: %v, want %v", r.Rows[i].Name, column, got, v)
			}
		}
		if len(r.Rows[i].Values) != len(want) {
			t.Errorf("%s has %v, want %v", r.Rows[i].Name, r.Rows[i].Values, want)
		}
	}
}

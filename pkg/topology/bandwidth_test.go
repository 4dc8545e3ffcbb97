package topology

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPodBandwidth(t *testing.T) {
	rows, err := PodBandwidth("ns", "p", "default", map[string]string{IngressBandwidth: "10M", EgressBandwidth: "100k"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]int{}
	for _, r := range rows {
		got[r.Direction+" "+r.Match] = r.Bandwidth
	}
	want := map[string]map[string]int{
		`to-lport outport == "pod/ns/p/default"`:  {"rate": 10000, "burst": 2500},
		`from-lport inport == "pod/ns/p/default"`: {"rate": 100, "burst": 100},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	for _, bad := range []string{ // the last three would keep ParseQuantity busy for hours
		"", "fast", "-1M", "10", "2P", "1e-2000000000", "1000000000000000000000e1000000000", "0e2147483647",
	} {
		if _, err := PodBandwidth("ns", "p", "default", map[string]string{EgressBandwidth: bad}); err == nil || !strings.Contains(err.Error(), EgressBandwidth) {
			t.Errorf("%q: %v, want an error that names the annotation", bad, err)
		}
	}
	for _, good := range []string{"1000", "1.5M", "10Mi", "1P", "2Ki"} {
		if rows, err := PodBandwidth("ns", "p", "default", map[string]string{EgressBandwidth: good}); err != nil || len(rows) != 1 {
			t.Errorf("%q: %v %v", good, rows, err)
		}
	}
	if rows, err := PodBandwidth("ns", "p", "default", nil); err != nil || rows != nil {
		t.Errorf("without annotations: %v %v", rows, err)
	}
}

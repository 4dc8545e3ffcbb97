package timeline

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

func TestMeasurementsBecomeInput(t *testing.T) {
	ms := time.Millisecond
	p := &traffic.Probes{
		Start: zero, Interval: 5 * ms, Sent: traffic.Times{0, 5 * ms, 10 * ms}, Arrived: traffic.Times{ms, traffic.Never, 12 * ms},
		Counts: traffic.Counts{Sent: 3, Received: 2, Lost: 1, Duplicated: 4, Reordered: 5}, Gap: traffic.Gap{From: ms, To: 12 * ms, Open: true, Paused: 7 * ms},
	}
	want := Direction{
		Name: "there", Interval: 5 * ms, Sent: 3, Lost: 1, Duplicated: 4, Reordered: 5, Arrivals: []time.Time{at(1), at(12)}, Missing: []time.Time{at(5)},
		From: at(1), To: at(12), Open: true, Paused: 7 * ms,
	}
	if diff := cmp.Diff(want, Probed("there", p)); diff != "" {
		t.Errorf("direction (-want +got):\n%s", diff)
	}
	p.Sent = nil // one way: when they were sent is not known
	if d := Probed("there", p); len(d.Missing) != 0 || d.Lost != 1 {
		t.Errorf("one way: %d at a known time, %d lost; want 0, 1", len(d.Missing), d.Lost)
	}
	r := &traffic.Result{Connections: []traffic.Connection{
		{Kind: traffic.Upload, Opened: true, Buckets: []int64{1, 2}, Stall: traffic.Gap{To: 3 * ms}}, {Kind: traffic.Upload, Opened: true, Buckets: []int64{10, 20, 30}},
		{Kind: traffic.Echo, Opened: true, Broken: traffic.Reset, Buckets: []int64{7}, Stall: traffic.Gap{To: time.Second}}, {Kind: traffic.Echo, Broken: traffic.Refused},
	}}
	if diff := cmp.Diff(Series{Name: "up", Start: zero, Bucket: ms, Bytes: []int64{11, 22, 30}}, Streams("up", traffic.Upload, zero, ms, r.Connections)); diff != "" {
		t.Errorf("throughput (-want +got):\n%s", diff)
	}
	if got, want := Held(r, r), (Connections{Total: 8, Kept: 4, Stall: 3 * ms}); got != want {
		t.Errorf("connections %+v, want %+v", got, want)
	}
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
	"github.com/godwit-cni/godwit/test/lab/traffic/traffictest"
)

// probes are sent every 5 ms for a second and answered after 1 ms; those that are sent from one time to another are lost.
func probes(from, to int) traffic.Probes { return traffictest.Probes("10.244.0.2", start, from, to) }

func micro(ms int) *metav1.MicroTime {
	t := metav1.NewMicroTime(at(ms))
	return &t
}

// passed: QEMU stops the VM at 500 and lets it run at 520; probes to it are lost for 30 ms, those from it for 25.
func passed() *passage.Passage {
	to, from := probes(500, 530), probes(500, 525)
	seen := passage.Seen{Result: &traffic.Result{Probes: []traffic.Probes{to}}, Arrivals: traffictest.Arrivals(to)}
	seen.Arrivals.Flows[0].Seq = append(seen.Arrivals.Flows[0].Seq, 3, 4)
	seen.Arrivals.Flows[0].At = append(seen.Arrivals.Flows[0].At, time.Second, time.Second)
	p := &passage.Passage{
		Source: "node1", Target: "node2", Calm: at(100), Created: at(200), Ended: at(900), Stop: lab.Stop{Stopped: at(500), Resumed: at(520)}, To: seen,
		From:    passage.Seen{Result: &traffic.Result{Probes: []traffic.Probes{from}}, Arrivals: traffictest.Arrivals(from)},
		Watched: []timeline.Stage{{At: at(302), Name: "target pod scheduled"}, {At: at(890), Name: "migration succeeded"}},
	}
	st := &p.Record.Status
	st.Interruption = &v1alpha1.Interruption{Milliseconds: "24.5"}
	st.Source = &v1alpha1.Observation{LastFrame: micro(499)}
	st.Target = &v1alpha1.Observation{Announced: micro(521), FirstFrame: micro(523), FramesBeforeAnnouncement: 3, Attached: micro(400)}
	st.Stages = []v1alpha1.Stage{{Name: v1alpha1.StageScheduled, Time: *micro(300)}, {Name: v1alpha1.StagePrepared, Time: *micro(312)}, {Name: v1alpha1.StageReady, Time: *micro(600)}}
	return p
}

func TestMeasured(t *testing.T) {
	n := noted{
		writes: []write{{at: at(310), requested: "node1,node2", strategy: "rarp"}, {at: at(610), requested: "node2"}},
		bounds: []bound{{at: at(311)}, {at: at(522), activated: "node2"}},
	}
	got := measured(passed(), n)
	got.connections(
		passage.Seen{Result: &traffic.Result{Connections: []traffic.Connection{{Opened: true}, {Opened: true, Broken: traffic.Reset}}}},
		passage.Seen{Result: &traffic.Result{Connections: []traffic.Connection{{}, {Opened: true}}}},
	)
	want := sample{
		Source: "node1", Target: "node2", Stop: 20, Unanswered: 30, Unreached: 30, SilenceTo: 35, SilenceFrom: 30, Undisturbed: 5, Recorded: pointer(24.5),
		LostTo: 6, AtStop: 6, Losses: []loss{{From: 0, To: 30, Probes: 6}}, LostFrom: 5, ToGuest: 2, Connections: 4, Broken: 2, Breaks: got.Breaks, Writes: 2, ToOptions: pointer(10), FramesBefore: 3,
		Steps: map[step]float64{
			stepAttached: -100, stepLost: 0, stepLastFrame: -1, stepResumed: 20, stepAnnounced: 21, stepActivated: 22, stepFirst: 23, stepHeard: 26, stepOpen: 30, stepAnswered: 31,
			stepReady: 100, stepCommitted: 110, stepSucceeded: 390,
		},
	}
	if len(got.Breaks) != 2 || !strings.Contains(strings.Join(got.Breaks, "\n"), string(traffic.Reset)) {
		t.Errorf("breaks: %q: want one that was reset, and one that was never opened", got.Breaks)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("measured (-want +got):\n%s", diff)
	}
}

// What nobody noted is missing, and no zero.
func TestMeasuredWithoutRecord(t *testing.T) {
	p := passed()
	p.Record, p.Watched = v1alpha1.PortMigration{}, nil
	got := measured(p, noted{})
	if got.Recorded != nil || got.ToOptions != nil || beyondRecorded(got) != nil {
		t.Errorf("recorded %v, to options %v: want neither", got.Recorded, got.ToOptions)
	}
	for _, s := range []step{stepLastFrame, stepAnnounced, stepActivated, stepFirst, stepReady, stepCommitted, stepSucceeded} {
		if v, ok := got.Steps[s]; ok {
			t.Errorf("step %q at %v ms: want none", s, v)
		}
	}
}

package passage

import (
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic"
	"github.com/godwit-cni/godwit/test/lab/traffic/traffictest"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// probes are sent every 5 ms for a second; those from one time to another are lost.
func probes(peer string, from, to int) traffic.Probes {
	return traffictest.Probes(peer, start, from, to)
}

// passed is a migration in which probes were lost for 30 ms, while QEMU had stopped the VM and a little longer.
func passed() *Passage {
	there, back := probes("10.244.0.2", 500, 530), probes("10.244.0.3", 500, 525)
	return &Passage{
		Source: "node1", Target: "node2", Calm: at(100), Created: at(300), Ended: at(900), Stop: lab.Stop{Stopped: at(500), Resumed: at(520)},
		To:   Seen{Result: &traffic.Result{Probes: []traffic.Probes{there}}, Arrivals: traffictest.Arrivals(there)},
		From: Seen{Result: &traffic.Result{Probes: []traffic.Probes{back}}, Arrivals: traffictest.Arrivals(back)},
	}
}

// The interruption is the silence around QEMU's stop. What is longer elsewhere, and what there is without a migration, stands beside it.
func TestPassageDirections(t *testing.T) {
	p := passed()
	there := &p.To.Result.Probes[0]
	for seq := 140; seq < 150; seq++ { // a pause of the machine's, after the migration's interruption
		there.Arrived[seq] = traffic.Never
	}
	p.To.Arrivals.Flows[0].Seq = append(p.To.Arrivals.Flows[0].Seq, 3, 4)
	p.To.Arrivals.Flows[0].At = append(p.To.Arrivals.Flows[0].At, time.Second, time.Second)
	p.Stop.Resumed = at(100)
	p.Stop.Stopped = at(99)
	p.Created = at(98)
	p.Calm = at(50)
	all := p.Directions()
	if len(all) != 2 || all[0].Name != "to VM and back, IPv4" || all[1].Name != "from VM, IPv4" {
		t.Fatalf("directions: %+v", all)
	}
	to := all[0]
	if got := to.Silence(); got != 35*time.Millisecond {
		t.Errorf("interruption of %s: want 35ms, the gap within %s after QEMU's stop", got, lateGap)
	}
	if to.Elsewhere != 55*time.Millisecond || to.Quiet != 5*time.Millisecond {
		t.Errorf("elsewhere %s, undisturbed %s: want 55ms and 5ms", to.Elsewhere, to.Quiet)
	}
	if to.Duplicated != 2 {
		t.Errorf("%d duplicated: want the 2 that the VM got twice", to.Duplicated)
	}
}

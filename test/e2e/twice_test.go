package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// underWayFor is how long before QEMU's stop a probe may have been sent that comes twice. While a VM migrates each is sent to both nodes. One that the source has delivered before the stop may be under way to the
// target still when the port is opened there, if that node's switch, a process like any other here, has waited for the processor; on an idle machine none does. What is sent to a port that is open too soon comes twice for as
// long as memory is copied.
const underWayFor = 500 * time.Millisecond

// twice counts the probes that a guest got twice: those that were under way when QEMU stopped the VM, and the others.
func twice(run *traffic.Result, arrivals *traffic.Arrivals, stops []time.Time) (late, wrong int) {
	for i := range run.Probes {
		p := &run.Probes[i]
		k := slices.IndexFunc(arrivals.Flows, func(f traffic.Flow) bool { return f.Flow == p.Flow })
		if k < 0 {
			continue
		}
		seen := map[uint32]bool{}
		for _, seq := range arrivals.Flows[k].Seq {
			if !seen[seq] || int(seq) >= len(p.Sent) {
				seen[seq] = true
				continue
			}
			sent := p.Start.Add(p.Sent[seq])
			if slices.ContainsFunc(stops, func(stop time.Time) bool {
				return sent.After(stop.Add(-underWayFor)) && sent.Before(stop.Add(p.Interval))
			}) {
				late++
			} else {
				wrong++
			}
		}
	}
	return late, wrong
}

// stopsOf are the moments at which QEMU has stopped the VM.
func stopsOf(entries []kubevirt.Entry) (at []time.Time) {
	for _, e := range entries {
		if e.Event == string(guest.Stopped) {
			at = append(at, e.Time)
		}
	}
	return at
}

// notTwice fails the test for what the guest got twice.
func (m *machine) notTwice(t *testing.T, run *traffic.Result, arrivals *traffic.Arrivals) {
	t.Helper()
	entries, err := m.Journal()
	if err != nil {
		t.Fatal(err)
	}
	late, wrong := twice(run, arrivals, stopsOf(entries))
	if late > 0 {
		t.Logf("VM %s got %d probes twice that were under way when QEMU stopped it", m, late)
	}
	if wrong > 0 {
		t.Errorf("VM %s got %d probes twice that were not under way when QEMU stopped it", m, wrong)
	}
}

func TestTwice(t *testing.T) {
	start := time.Unix(1000, 0)
	sent := traffic.Times{0, time.Second, 1300 * time.Millisecond, 1500 * time.Millisecond, 2 * time.Second}
	run := &traffic.Result{Probes: []traffic.Probes{{Flow: 1, Start: start, Interval: 20 * time.Millisecond, Sent: sent}}}
	arrivals := &traffic.Arrivals{Flows: []traffic.Flow{{Flow: 1, Seq: []uint32{0, 1, 2, 2, 3, 0, 4, 4}}}}
	if late, wrong := twice(run, arrivals, []time.Time{start.Add(1500 * time.Millisecond)}); late != 1 || wrong != 2 {
		t.Errorf("%d were under way, %d were not: want that of 1.3 s, and those of 0 and 2 s", late, wrong)
	}
	if late, wrong := twice(run, arrivals, nil); late != 0 || wrong != 3 {
		t.Errorf("without a stop %d were under way, %d were not: want all three wrong", late, wrong)
	}
}

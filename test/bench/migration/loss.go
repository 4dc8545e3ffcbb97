package main

import (
	"math"
	"slices"
	"time"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// loss is a time over which no probe to the VM was sent that got an answer. Times are in milliseconds since QEMU's STOP.
type loss struct {
	From float64 `json:"from"`
	To   float64 `json:"to"`
	// Probes were sent in it, of which the guest got Arrived: their answers were lost.
	Probes  int `json:"probes"`
	Arrived int `json:"arrived"`
}

func (l loss) length() float64 { return math.Round((l.To-l.From)*1000) / 1000 }

// losses finds them. arrivals are what the guest got.
func losses(r *traffic.Probes, arrivals *traffic.Arrivals, stopped time.Time) []loss {
	got := map[uint32]bool{}
	for i := range arrivals.Flows {
		if f := &arrivals.Flows[i]; f.Flow == r.Flow {
			for _, seq := range f.Seq {
				got[seq] = true
			}
		}
	}
	var all []loss
	answered := true
	for seq, at := range r.Arrived {
		if at != traffic.Never {
			answered = true
			continue
		}
		since := r.Start.Add(r.Sent[seq]).Sub(stopped)
		if answered {
			all = append(all, loss{From: millis(since)})
		}
		answered = false
		l := &all[len(all)-1]
		l.To = millis(since + r.Interval)
		l.Probes++
		if got[uint32(seq)] {
			l.Arrived++
		}
	}
	return all
}

// unreached are those losses in which the guest got nothing: what remains when a probe that it got counts as answered. Answers get lost too when a guest that was
// without a processor sends many at once.
func unreached(r *traffic.Probes, arrivals *traffic.Arrivals, stopped time.Time) []loss {
	reached := *r
	reached.Arrived = slices.Clone(r.Arrived)
	for i := range arrivals.Flows {
		for _, seq := range arrivals.Flows[i].Seq {
			if arrivals.Flows[i].Flow == r.Flow && int(seq) < len(reached.Arrived) {
				reached.Arrived[seq] = r.Sent[seq]
			}
		}
	}
	return losses(&reached, arrivals, stopped)
}

// lateLoss is how long after QEMU has let the VM run again a loss may begin that still counts as the switch-over's, in milliseconds.
const lateLoss = 500

// switching: the loss has to do with QEMU's stop, which took so long.
func (l loss) switching(stop float64) bool { return l.To > 0 && l.From < stop+lateLoss }

// interrupting is the longest of those losses that have to do with QEMU's stop; zero if there is none.
func interrupting(all []loss, stop float64) (worst loss) {
	for _, l := range all {
		if l.switching(stop) && l.length() > worst.length() {
			worst = l
		}
	}
	return worst
}

// kept is how many probes of losses that have to do with QEMU's stop the guest never got.
func kept(all []loss, stop float64) (n int) {
	for _, l := range all {
		if l.switching(stop) {
			n += l.Probes - l.Arrived
		}
	}
	return n
}

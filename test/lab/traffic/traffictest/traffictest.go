// Package traffictest makes results of traffic for the tests of those who read them.
package traffictest

import (
	"net/netip"
	"time"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// Probes are sent to peer every 5 ms for a second and answered after 1 ms; those that are sent between two times, in milliseconds from start, are lost.
func Probes(peer string, start time.Time, from, to int) traffic.Probes {
	p := traffic.Probes{Peer: netip.MustParseAddr(peer), Start: start, Interval: 5 * time.Millisecond}
	for ms := 0; ms < 1000; ms += 5 {
		sent := time.Duration(ms) * time.Millisecond
		p.Sent, p.Arrived = append(p.Sent, sent), append(p.Arrived, sent+time.Millisecond)
		p.Counts.Sent++
		if ms >= from && ms < to {
			p.Arrived[len(p.Arrived)-1] = traffic.Never
			p.Counts.Lost++
		}
	}
	p.Counts.Received = p.Counts.Sent - p.Counts.Lost
	if to >= 1000 {
		p.Gap = traffic.Gap{From: time.Duration(from-4) * time.Millisecond, To: time.Second, Open: true}
	}
	return p
}

// Arrivals are those of probes at the peer, whose clock is the sender's.
func Arrivals(p traffic.Probes) *traffic.Arrivals {
	a := &traffic.Arrivals{Start: p.Start, Flows: []traffic.Flow{{}}}
	for seq, at := range p.Arrived {
		if at != traffic.Never {
			a.Flows[0].Seq, a.Flows[0].At = append(a.Flows[0].Seq, uint32(seq)), append(a.Flows[0].At, at)
		}
	}
	return a
}

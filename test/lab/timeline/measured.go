package timeline

import (
	"time"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// Probed makes a direction of what package traffic has measured: of a run's own Probes, or of those of traffic.OneWay.
func Probed(name string, p *traffic.Probes) Direction {
	d := Direction{
		Name: name, Interval: p.Interval, Sent: p.Counts.Sent, Lost: p.Counts.Lost, Duplicated: p.Counts.Duplicated, Reordered: p.Counts.Reordered,
		From: p.Start.Add(p.Gap.From), To: p.Start.Add(p.Gap.To), Open: p.Gap.Open, Paused: p.Gap.Paused,
	}
	for seq, at := range p.Arrived {
		switch {
		case at != traffic.Never:
			d.Arrivals = append(d.Arrivals, p.Start.Add(at))
		case seq < len(p.Sent):
			d.Missing = append(d.Missing, p.Start.Add(p.Sent[seq]))
		}
	}
	return d
}

// Streams is the throughput of all connections of a kind together: of traffic.Result or traffic.Arrivals, whose start and bucket these are.
func Streams(name string, kind traffic.Kind, start time.Time, bucket time.Duration, all []traffic.Connection) Series {
	s := Series{Name: name, Start: start, Bucket: bucket}
	for _, c := range all {
		if c.Kind != kind {
			continue
		}
		for i, n := range c.Buckets {
			if i == len(s.Bytes) {
				s.Bytes = append(s.Bytes, 0)
			}
			s.Bytes[i] += n
		}
	}
	return s
}

// Held counts connections over several runs. A connection is kept when it was opened and did not break.
func Held(runs ...*traffic.Result) Connections {
	var h Connections
	for _, r := range runs {
		for i := range r.Connections {
			c := &r.Connections[i]
			h.Total++
			if c.Opened && c.Broken == "" {
				h.Kept++
				h.Stall = max(h.Stall, c.Stall.Length())
			}
		}
	}
	return h
}

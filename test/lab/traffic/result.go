package traffic

import (
	"net/netip"
	"slices"
	"time"
)

// Result is what a run found. Offsets are from Start.
type Result struct {
	Run RunID `json:"run"`
	// Start is when the run began, by the wall clock.
	Start time.Time `json:"start"`
	// Length is how long the run sent.
	Length time.Duration `json:"length"`
	// ClockStep is how far the wall clock moved against the monotonic one meanwhile. More than some milliseconds: arrivals, which the kernel stamps by the wall
	// clock, are wrong by as much.
	ClockStep time.Duration `json:"clockStep"`
	// Bucket is the length of the buckets of Connections.
	Bucket      time.Duration `json:"bucket"`
	Probes      []Probes      `json:"probes,omitempty"`
	Connections []Connection  `json:"connections,omitempty"`
}

// Open counts the connections that were opened, Broken those that did not get that far or did not last.
func (r *Result) Open() (open, broken int) {
	for i := range r.Connections {
		if c := &r.Connections[i]; c.Opened {
			open++
		}
		if r.Connections[i].Broken != "" {
			broken++
		}
	}
	return open, broken
}

// Probes are what became of the probes to one peer: of their replies, in a run's own result, or of themselves, in OneWay's.
type Probes struct {
	Flow uint16     `json:"flow"`
	Peer netip.Addr `json:"peer"`
	// Start is what Sent, Arrived and Gap are offsets from.
	Start    time.Time     `json:"start"`
	Interval time.Duration `json:"interval"`
	// Sent and Arrived have an entry for each sequence number. Sent is empty in OneWay's result, whose sender's clock is another one.
	Sent    Times  `json:"sent,omitempty"`
	Arrived Times  `json:"arrived"`
	Counts  Counts `json:"counts"`
	Gap     Gap    `json:"gap"`
	// Late is how late the sender was at worst against its schedule, by its own clock.
	Late time.Duration `json:"late"`
}

// Counts of probes. Sent = Received + Lost.
type Counts struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
	Lost     int `json:"lost"`
	// Duplicated are arrivals of what had arrived before.
	Duplicated int `json:"duplicated"`
	// Reordered are first arrivals after that of a later probe.
	Reordered int `json:"reordered"`
	// Corrupt arrived with wrong contents; they count as lost as well.
	Corrupt int `json:"corrupt"`
	// Refused were not sent, or answered with an ICMP error; those that were not sent count as lost as well.
	Refused int `json:"refused"`
}

// Gap is the longest time without an arrival.
type Gap struct {
	// From is the last arrival before it, To the first after it: offsets, like those of what it is a part of.
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
	// Open means that nothing has arrived since From: To is the end of the measurement.
	Open bool `json:"open,omitempty"`
	// Paused is the longest time between two sends in and beside the gap, by the sender's own clock: much more than the interval means that the sender, not the
	// network, is to blame for a part of the gap. A stop of the VM in which the sender runs is not seen in it.
	Paused time.Duration `json:"paused,omitempty"`
}

// Length is how long it was.
func (g Gap) Length() time.Duration { return g.To - g.From }

// Within is the longest gap of which some is in a window of the wall clock's time: that of a migration, or one in which nothing was done, to compare. It is the
// zero Gap if there were not two arrivals.
func (p *Probes) Within(from, to time.Time) Gap {
	at := slices.DeleteFunc(slices.Sorted(slices.Values(p.Arrived)), func(t time.Duration) bool { return t == Never })
	gaps := make([]Gap, 0, len(at))
	for i := 1; i < len(at); i++ {
		gaps = append(gaps, Gap{From: at[i-1], To: at[i]})
	}
	if p.Gap.Open {
		gaps = append(gaps, p.Gap)
	}
	var worst Gap
	for _, g := range gaps {
		if g.Length() > worst.Length() && p.Start.Add(g.From).Before(to) && p.Start.Add(g.To).After(from) {
			worst = g
		}
	}
	if len(p.Sent) > 0 {
		worst.Paused = paused(p.Sent, worst, p.Interval)
	}
	return worst
}

// LostWithin are the moments of the wall clock, in a window of it, at which probes were sent that were never answered.
func (p *Probes) LostWithin(from, to time.Time) (lost []time.Time) {
	for seq, sent := range p.Sent {
		at := p.Start.Add(sent)
		if p.Arrived[seq] == Never && !at.Before(from) && at.Before(to) {
			lost = append(lost, at)
		}
	}
	return lost
}

// longest finds the longest gap in arrivals, which are in any order and may have Never; from and to bound the measurement. A gap at the end is one, a gap
// before the first arrival too.
func longest(arrived Times, from, to time.Duration) Gap {
	at := make([]time.Duration, 0, len(arrived))
	for _, t := range arrived {
		if t != Never {
			at = append(at, t)
		}
	}
	slices.Sort(at)
	gap, last := Gap{From: from, To: from}, from
	for _, t := range at {
		if t-last > gap.Length() {
			gap = Gap{From: last, To: t}
		}
		last = max(last, t)
	}
	if to-last > gap.Length() {
		gap = Gap{From: last, To: to, Open: true}
	}
	return gap
}

// paused is the longest time between two sends that touches a gap.
func paused(sent Times, gap Gap, interval time.Duration) (worst time.Duration) {
	for i := 1; i < len(sent); i++ {
		if sent[i] >= gap.From-interval && sent[i-1] <= gap.To {
			worst = max(worst, sent[i]-sent[i-1])
		}
	}
	return worst
}

// arrival is one arrival of a probe at one place, in the order of arrival.
type arrival struct {
	seq uint32
	at  time.Duration
}

// count makes first arrivals and numbers from arrivals in their order. sent is how many sequence numbers there are; what is beyond is not ours.
func count(arrivals []arrival, sent int) (Times, Counts) {
	c := Counts{Sent: sent}
	first := make(Times, sent)
	for i := range first {
		first[i] = Never
	}
	newest := -1
	for _, a := range arrivals {
		switch seq := int(a.seq); {
		case seq >= sent:
		case first[seq] != Never:
			c.Duplicated++
		default:
			first[seq] = max(a.at, 0)
			c.Received++
			if seq < newest {
				c.Reordered++
			}
			newest = max(newest, seq)
		}
	}
	c.Lost = c.Sent - c.Received
	return first, c
}

// OneWay is what became of a run's probes on their way to the peer whose arrivals these are: the direction to look at when the run was in a VM that has been
// stopped. flow is that of run.Probes.
func OneWay(run *Probes, arrivals *Arrivals) Probes {
	p := Probes{Flow: run.Flow, Peer: run.Peer, Start: arrivals.Start, Interval: run.Interval, Late: run.Late}
	seen := arrivals.flow(run.Flow)
	p.Arrived, p.Counts = count(seen.list(), run.Counts.Sent)
	p.Counts.Corrupt, p.Counts.Refused = seen.Corrupt, run.Counts.Refused
	if len(seen.At) == 0 {
		p.Gap = Gap{To: run.Interval * time.Duration(p.Counts.Sent), Open: true}
		return p
	}
	// How long nothing has come at the end is known by the number of probes that are missing there.
	missing := 0
	for missing < len(p.Arrived) && p.Arrived[len(p.Arrived)-1-missing] == Never {
		missing++
	}
	p.Gap = longest(p.Arrived, seen.At[0], slices.Max(seen.At)+run.Interval*time.Duration(missing))
	p.Gap.Paused = pausedBetween(run.Sent, p.Arrived, p.Gap)
	return p
}

// pausedBetween is the longest time between two sends from the last probe that arrived before a gap to the first that arrived after it.
func pausedBetween(sent, arrived Times, gap Gap) (worst time.Duration) {
	before, after := 0, len(arrived)-1
	for seq, at := range arrived {
		switch at {
		case gap.From:
			before = seq
		case gap.To:
			after = seq
		}
	}
	for i := min(before, after) + 1; i <= max(before, after) && i < len(sent); i++ {
		worst = max(worst, sent[i]-sent[i-1])
	}
	return worst
}

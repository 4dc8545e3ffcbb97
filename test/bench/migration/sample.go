package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// sample is what was measured of one migration. Times are in milliseconds; a nil one is not known.
type sample struct {
	Kind   migration.Baseline `json:"kind"`
	Source string             `json:"source"`
	Target string             `json:"target"`
	// Stop is QEMU's own, from STOP on the source to RESUME on the target.
	Stop float64 `json:"stop"`
	// Unanswered is the longest time over which no probe to the VM was sent that got an answer, however late; SilenceTo and SilenceFrom are the longest times without an arrival, of answers
	// and of what the VM sends. Undisturbed is the longest while nothing was done.
	Unanswered float64 `json:"unanswered"`
	// Unreached is the same of probes that did not get to the guest.
	Unreached   float64 `json:"unreached"`
	SilenceTo   float64 `json:"silenceTo"`
	SilenceFrom float64 `json:"silenceFrom"`
	Undisturbed float64 `json:"undisturbed"`
	// Recorded is the PortMigration's interruption.
	Recorded *float64 `json:"recorded,omitempty"`
	// LostTo are probes to the VM without an answer, whenever they were lost, LostFrom probes of the VM that did not arrive.
	// Losses are where LostTo was. AtStop are those of them that have to do with QEMU's stop, and that the guest never got.
	LostTo   int    `json:"lostTo"`
	AtStop   int    `json:"lostAtStop"`
	Losses   []loss `json:"losses,omitempty"`
	LostFrom int    `json:"lostFrom"`
	// ToGuest are duplicates that were delivered to the guest, ToPeer those that its peer got.
	ToGuest int `json:"duplicatesToGuest"`
	ToPeer  int `json:"duplicatesToPeer"`
	// Connections were held, Broken did not last; Breaks says why.
	Connections int      `json:"connections"`
	Broken      int      `json:"broken"`
	Breaks      []string `json:"breaks,omitempty"`
	// Writes are changes of the VM's row, Transactions all that the controllers sent meanwhile.
	Writes       int `json:"writes"`
	Transactions int `json:"transactions"`
	// ToOptions is from when anybody knew that the target pod has a node until anybody knew that the row asks for both: this program, which is told of both, or the
	// controller by its own record.
	ToOptions *float64 `json:"toOptions,omitempty"`
	// ActivatedBy is what opened the target's port. FramesLost came to the source's link when the VM was stopped there, FramesQueued to the target's before it was heard.
	ActivatedBy  string   `json:"activatedBy,omitempty"`
	FramesLost   *float64 `json:"framesLost,omitempty"`
	FramesQueued *float64 `json:"framesQueued,omitempty"`
	// FramesBefore were sent on the target before the announcement.
	FramesBefore int64 `json:"framesBeforeAnnouncement"`
	// Steps are when what happened, since QEMU's STOP.
	Steps map[step]float64 `json:"steps"`
}

// step is a moment of the switch-over.
type step string

// The steps, in the order in which they usually come.
const (
	stepLost      step = "first probe was sent that got no answer"
	stepAttached  step = "OVN has installed and blocked the port on the target"
	stepLastFrame step = "last frame on the source"
	stepResumed   step = "QEMU lets the guest run"
	stepKnown     step = "the source's agent knows that the VM is stopped"
	stepOpened    step = "the target's agent opens the port"
	stepAnnounced step = "its RARP leaves the pod"
	stepActivated step = "southbound: activated, as told to this program"
	stepOpen      step = "first probe was sent that got an answer"
	stepFirst     step = "the guest's first frame"
	stepHeard     step = "its first probe arrives at the peer"
	stepAnswered  step = "its first answer arrives at the peer"
	stepReady     step = "the controller knows that it is ready"
	stepCommitted step = "northbound: one chassis again"
	stepSucceeded step = "KubeVirt calls it a success"
)

func steps() []step {
	return []step{stepAttached, stepLost, stepLastFrame, stepKnown, stepOpened, stepResumed, stepAnnounced, stepActivated, stepOpen, stepFirst, stepHeard, stepAnswered, stepReady, stepCommitted, stepSucceeded}
}

// measured is what a passage and the databases say.
func measured(p *passage.Passage, n noted) sample {
	got := sample{Source: p.Source, Target: p.Target, Stop: millis(p.Stop.Duration()), Steps: map[step]float64{}, Writes: len(n.writes)}
	got.probes(p)
	got.record(&p.Record.Status)
	got.steps(p, n)
	got.ToOptions = toOptions(p, n)
	return got
}

func toOptions(p *passage.Passage, n noted) *float64 {
	scheduled, _ := p.Record.Status.Stage(v1alpha1.StageScheduled)
	for _, s := range p.Watched {
		if s.Name == "target pod scheduled" {
			scheduled = earlier(scheduled, s.At)
		}
	}
	written, _ := p.Record.Status.Stage(v1alpha1.StagePrepared)
	paired, _ := n.paired()
	written = earlier(written, paired)
	if scheduled.IsZero() || written.IsZero() {
		return nil
	}
	return pointer(millis(written.Sub(scheduled)))
}

// earlier of two times, of which a zero one is not known.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// probes counts what became of them.
func (s *sample) probes(p *passage.Passage) {
	for i := range p.To.Result.Probes {
		c := p.To.Result.Probes[i].Counts
		s.LostTo, s.ToPeer = s.LostTo+c.Lost, s.ToPeer+c.Duplicated
		found := losses(&p.To.Result.Probes[i], p.To.Arrivals, p.Stop.Stopped)
		s.Losses = append(s.Losses, found...)
		s.AtStop += kept(found, s.Stop)
		if worst := interrupting(found, s.Stop); worst.length() > s.Unanswered {
			s.Unanswered, s.Steps[stepLost] = worst.length(), worst.From
		}
		s.Unreached = max(s.Unreached, interrupting(unreached(&p.To.Result.Probes[i], p.To.Arrivals, p.Stop.Stopped), s.Stop).length())
	}
	for i := range p.From.Result.Probes {
		c := traffic.OneWay(&p.From.Result.Probes[i], p.From.Arrivals).Counts
		s.LostFrom, s.ToPeer = s.LostFrom+c.Lost, s.ToPeer+c.Duplicated
		s.ToGuest += p.From.Result.Probes[i].Counts.Duplicated
	}
	s.ToGuest += p.To.Arrivals.Duplicated()
	for _, d := range p.ToVM() {
		s.SilenceTo, s.Undisturbed = max(s.SilenceTo, millis(d.Silence())), max(s.Undisturbed, millis(d.Quiet))
	}
	for _, d := range p.FromVM() {
		s.SilenceFrom, s.Undisturbed = max(s.SilenceFrom, millis(d.Silence())), max(s.Undisturbed, millis(d.Quiet))
	}
}

// connections counts those that were held.
func (s *sample) connections(to, from passage.Seen) {
	held := timeline.Held(to.Result, from.Result)
	s.Connections, s.Broken = held.Total, held.Total-held.Kept
	for side, r := range map[string]*traffic.Result{"to the VM": to.Result, "from the VM": from.Result} {
		for i := range r.Connections {
			if c := &r.Connections[i]; !c.Opened || c.Broken != "" {
				s.Breaks = append(s.Breaks, fmt.Sprintf("%s %d %s, with %s: %s after %s ms of the run: %s", c.Kind, c.Number, side, c.Peer, c.Broken, passage.Millis(c.Ended), c.Error))
			}
		}
	}
	slices.Sort(s.Breaks)
}

// record takes over what the PortMigration says.
func (s *sample) record(st *v1alpha1.PortMigrationStatus) {
	if i := st.Interruption; i != nil {
		if v, err := strconv.ParseFloat(i.Milliseconds, 64); err == nil {
			s.Recorded = &v
		}
	}
	if st.Target != nil {
		s.FramesBefore, s.ActivatedBy, s.FramesQueued = st.Target.FramesBeforeAnnouncement, string(st.Target.ActivatedBy), whole(st.Target.FramesQueued)
	}
	if st.Source != nil {
		s.FramesLost = whole(st.Source.FramesLost)
	}
}

func whole(n *int64) *float64 {
	if n == nil {
		return nil
	}
	return pointer(float64(*n))
}

// steps notes what happened when, since QEMU's STOP.
func (s *sample) steps(p *passage.Passage, n noted) {
	note := func(name step, at time.Time) {
		if !at.IsZero() {
			s.Steps[name] = millis(at.Sub(p.Stop.Stopped))
		}
	}
	note(stepResumed, p.Stop.Resumed)
	note(stepActivated, n.activated(p.Target))
	if o := p.Record.Status.Source; o != nil && o.LastFrame != nil {
		note(stepLastFrame, o.LastFrame.Time)
	}
	if o := p.Record.Status.Source; o != nil && o.Stopped != nil {
		note(stepKnown, o.Stopped.Time)
	}
	if o := p.Record.Status.Target; o != nil {
		if o.Attached != nil {
			note(stepAttached, o.Attached.Time)
		}
		if o.Opened != nil {
			note(stepOpened, o.Opened.Time)
		}
		if o.Announced != nil {
			note(stepAnnounced, o.Announced.Time)
		}
		if o.FirstFrame != nil {
			note(stepFirst, o.FirstFrame.Time)
		}
	}
	if at, ok := p.Record.Status.Stage(v1alpha1.StageReady); ok {
		note(stepReady, at)
	}
	for _, w := range n.writes {
		if w.requested == p.Target {
			note(stepCommitted, w.at)
			break
		}
	}
	for _, stage := range p.Watched {
		if stage.Name == "migration succeeded" {
			note(stepSucceeded, stage.At)
		}
	}
	for i := range p.To.Result.Probes {
		sent, answered := opened(&p.To.Result.Probes[i], p.Stop.Stopped)
		note(stepOpen, sent)
		note(stepAnswered, answered)
	}
	for i := range p.From.Result.Probes {
		way := traffic.OneWay(&p.From.Result.Probes[i], p.From.Arrivals)
		note(stepHeard, first(&way, p.Stop.Resumed))
	}
}

// opened is when the first probe after QEMU's stop was sent that got an answer, and when the first such answer came.
func opened(r *traffic.Probes, stopped time.Time) (sent, answered time.Time) {
	for seq, at := range r.Arrived {
		if at != traffic.Never && r.Start.Add(r.Sent[seq]).After(stopped) {
			sent, answered = earlier(sent, r.Start.Add(r.Sent[seq])), earlier(answered, r.Start.Add(at))
		}
	}
	return sent, answered
}

// first is the first arrival after a time.
func first(r *traffic.Probes, after time.Time) (best time.Time) {
	for _, at := range r.Arrived {
		if t := r.Start.Add(at); at != traffic.Never && t.After(after) {
			best = earlier(best, t)
		}
	}
	return best
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func pointer(v float64) *float64 { return &v }

func ms(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

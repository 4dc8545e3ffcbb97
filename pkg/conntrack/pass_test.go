package conntrack

import (
	"testing"
	"time"
)

func TestPasses(t *testing.T) {
	idle, chatty, other := balanced(), balanced(), balanced()
	idle.Timeout = 5 * 24 * time.Hour
	chatty.Orig.SrcPort, chatty.Reply.DstPort, chatty.Timeout = 1, 1, 30*time.Second
	other.Orig.SrcPort, other.Reply.DstPort = 2, 2
	changed := idle
	changed.TCP.State = 4
	flagged := idle
	flagged.TCP.Flags[0] ^= 0x30 // of what is not moved
	shifted := other
	shifted.Status |= sequenceAdjust
	var p Passes
	start := time.Unix(0, 0)
	for _, step := range []struct {
		name  string
		after time.Duration
		have  []Entry
		want  []Entry
	}{
		{"the first has all", 0, []Entry{idle, chatty}, []Entry{idle, chatty}},
		{"the next has nothing", time.Second, []Entry{idle, chatty}, nil},
		{"nor after a change of what is not moved", time.Second, []Entry{flagged, chatty}, nil},
		{"one that is new", 2 * time.Second, []Entry{idle, chatty, other}, []Entry{other}},
		{"one that would end on the target", 16 * time.Second, []Entry{idle, chatty, other}, []Entry{chatty}},
		{"once", 17 * time.Second, []Entry{idle, chatty, other}, nil},
		{"one that has changed", 18 * time.Second, []Entry{changed, chatty, other}, []Entry{changed}},
		{"one that cannot be moved", 19 * time.Second, []Entry{changed, chatty, shifted}, []Entry{shifted}},
		{"once too", 20 * time.Second, []Entry{changed, chatty, shifted}, nil},
		{"one that has gone", 21 * time.Second, []Entry{chatty}, nil},
		{"and comes again", 22 * time.Second, []Entry{changed, chatty}, []Entry{changed}},
	} {
		got := p.Due(step.have, start.Add(step.after))
		same := len(got) == len(step.want)
		for i := range step.want {
			same = same && got[i] == step.want[i]
		}
		if !same {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}

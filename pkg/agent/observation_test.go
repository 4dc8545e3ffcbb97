package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// ms is a time so many milliseconds after noon.
func ms(n int) time.Time { return noon.Add(time.Duration(n) * time.Millisecond) }

func micro(n int) *metav1.MicroTime { return &metav1.MicroTime{Time: ms(n)} }

func TestObserveTakesTheSlowestPort(t *testing.T) {
	fast := sighting{attached: ms(1), announced: ms(10), first: ms(9), early: 1, last: ms(30)}
	slow := sighting{attached: ms(2), announced: ms(20), first: ms(21), early: 2, last: ms(25), byAgent: true}
	passes := sighting{announced: ms(10), unblocked: ms(14)}
	silent := sighting{attached: ms(3)}
	for name, c := range map[string]struct {
		side  side
		ports []sighting
		want  v1alpha1.Observation
	}{
		"nothing": {sideTarget, nil, v1alpha1.Observation{}},
		"two ports": {sideTarget, []sighting{fast, slow}, v1alpha1.Observation{
			Attached: micro(2), Announced: micro(20), FirstFrame: micro(21), AnnouncedByAgent: true, FramesBeforeAnnouncement: 3,
			ActivatedBy: v1alpha1.ActivatedByRARP,
		}},
		"unblocked":                 {sideTarget, []sighting{passes, {announced: ms(9), unblocked: ms(13)}}, v1alpha1.Observation{Announced: micro(10), Unblocked: micro(14), ActivatedBy: v1alpha1.ActivatedByRARP}},
		"one is still blocked":      {sideTarget, []sighting{passes, {announced: ms(9), blocked: true}}, v1alpha1.Observation{Announced: micro(10), ActivatedBy: v1alpha1.ActivatedByRARP}},
		"given up, never announced": {sideTarget, []sighting{{unblocked: ms(13)}}, v1alpha1.Observation{}},
		"one was not announced":     {sideTarget, []sighting{fast, silent}, v1alpha1.Observation{Attached: micro(3), FirstFrame: micro(9), FramesBeforeAnnouncement: 1}},
		"source":                    {sideSource, []sighting{fast, slow, silent}, v1alpha1.Observation{LastFrame: micro(30)}},
		"silent source":             {sideSource, []sighting{silent}, v1alpha1.Observation{}},
	} {
		if diff := cmp.Diff(c.want, observe(c.side, c.ports)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSightingTellsWhoAnnounced(t *testing.T) {
	for name, c := range map[string]struct {
		sent  time.Time
		late  bool
		want  bool
		early int64
	}{
		"the VM":                        {time.Time{}, false, false, 2},
		"the VM, just before the agent": {ms(11), false, false, 2},
		"the agent":                     {ms(10), false, true, 2},
		"seen late":                     {ms(10), true, true, 0},
	} {
		s := sighting{sent: c.sent, late: c.late}
		early := s.add(frame.Seen{At: ms(5)})
		s.add(frame.Seen{At: ms(6)})
		rarp := s.add(frame.Seen{At: ms(10), RARP: true})
		first := s.add(frame.Seen{At: ms(11)})
		again := s.add(frame.Seen{At: ms(12), RARP: true})
		if early || first == c.late || s.first.Equal(ms(11)) == c.late || !rarp || again || s.byAgent != c.want || s.early != c.early || !s.announced.Equal(ms(10)) || !s.last.Equal(ms(12)) {
			t.Errorf("%s: news %v %v %v %v, seen %+v", name, early, rarp, first, again, s)
		}
		if !c.late && !s.earliest.At.Equal(ms(5)) {
			t.Errorf("%s: the earliest frame is said to be of %s", name, s.earliest.At)
		}
	}
}

func TestDue(t *testing.T) {
	heard := sighting{announced: ms(10)}
	whole := sighting{announced: ms(10), first: ms(12)}
	source := sighting{last: ms(10)}
	for name, c := range map[string]struct {
		c     course
		now   time.Time
		yes   bool
		again time.Duration
	}{
		"target, nothing yet":                     {course{side: sideTarget}, ms(0), false, 0},
		"target, announced":                       {course{side: sideTarget, ports: []sighting{heard}}, ms(510), false, 500 * time.Millisecond},
		"target, announced and silent":            {course{side: sideTarget, ports: []sighting{heard}}, ms(1010), true, 0},
		"target, both":                            {course{side: sideTarget, ports: []sighting{whole}}, ms(12), true, 0},
		"target, still blocked":                   {course{side: sideTarget, ports: []sighting{{announced: ms(10), first: ms(12), blocked: true}}}, ms(5000), false, 0},
		"target, still blocked at the end":        {course{side: sideTarget, ports: []sighting{{announced: ms(10), first: ms(12), blocked: true}}, ended: ms(20)}, ms(20), true, 0},
		"target, reported":                        {course{side: sideTarget, ports: []sighting{whole}, reported: true}, ms(13), false, 0},
		"target, over after the report":           {course{side: sideTarget, ports: []sighting{whole}, reported: true, ended: ms(20)}, ms(20), true, 0},
		"target, over before anything":            {course{side: sideTarget, ended: ms(20)}, ms(520), false, 500 * time.Millisecond},
		"target, over, and nothing came":          {course{side: sideTarget, ended: ms(20)}, ms(1020), true, 0},
		"target, over soon after":                 {course{side: sideTarget, ports: []sighting{heard}, ended: ms(900)}, ms(1010), true, 0},
		"source, before the VM is heard":          {course{side: sideSource, ports: []sighting{source}}, ms(900), false, 0},
		"source, not quiet":                       {course{side: sideSource, ports: []sighting{source}, heard: true}, ms(110), false, 200 * time.Millisecond},
		"source, quiet":                           {course{side: sideSource, ports: []sighting{source}, heard: true}, ms(310), true, 0},
		"source, reported":                        {course{side: sideSource, ports: []sighting{source}, heard: true, reported: true}, ms(900), false, 0},
		"source, over, VM goes on there":          {course{side: sideSource, ports: []sighting{{last: ms(1019)}}, ended: ms(20)}, ms(1020), true, 0},
		"source, over, VM goes on there, at once": {course{side: sideSource, ports: []sighting{{last: ms(19)}}, ended: ms(20)}, ms(20), false, 299 * time.Millisecond},
		"source, over, silent":                    {course{side: sideSource, ended: ms(20)}, ms(20), true, 0},
	} {
		if yes, again := c.c.due(c.now); yes != c.yes || again != c.again {
			t.Errorf("%s: %v, again after %s; want %v, %s", name, yes, again, c.yes, c.again)
		}
	}
}

func TestMergeKeepsWhatIsBetter(t *testing.T) {
	before := v1alpha1.Observation{
		Attached: micro(1), Announced: micro(10), AnnouncedByAgent: true, FirstFrame: micro(12), FramesBeforeAnnouncement: 3, LastFrame: micro(20), Unblocked: micro(11),
	}
	if got := merge(&before, v1alpha1.Observation{}); !same(got, before) {
		t.Errorf("nothing replaced what was reported: %+v", got)
	}
	later := v1alpha1.Observation{Attached: micro(30), Announced: micro(31), FirstFrame: micro(32), LastFrame: micro(33)}
	want := before
	want.LastFrame = micro(33)
	if got := merge(&before, later); !same(got, want) {
		t.Errorf("merged %+v, want %+v", got, want)
	}
	if got := merge(nil, later); !same(got, later) {
		t.Errorf("merged with nothing %+v, want %+v", got, later)
	}
}

func TestAnnouncementsAreBounded(t *testing.T) {
	s := sighting{}
	var times []time.Duration
	for range 100 {
		at, ok := s.announceAt(noon)
		if !ok {
			break
		}
		times = append(times, at.Sub(noon)/time.Millisecond)
		s.sends++
		s.announced, s.byAgent = at, true
	}
	if diff := cmp.Diff([]time.Duration{100, 150, 250, 350, 450}, times); diff != "" {
		t.Errorf("announced at ms (-want +got):\n%s", diff)
	}
	if _, ok := (&sighting{announced: ms(1)}).announceAt(noon); ok {
		t.Error("a VM that announced itself is announced")
	}
}

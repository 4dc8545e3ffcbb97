package traffic

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLongest(t *testing.T) {
	for _, tc := range []struct {
		name     string
		arrived  Times
		from, to time.Duration
		want     Gap
	}{
		{"nothing at all", nil, 0, ms(50), Gap{To: ms(50), Open: true}},
		{"even", Times{0, ms(5), ms(10)}, 0, ms(10), Gap{To: ms(5)}},
		{"in the middle", Times{0, ms(5), Never, Never, ms(20), ms(25)}, 0, ms(25), Gap{From: ms(5), To: ms(20)}},
		{"late ones come together", Times{0, ms(5), ms(101), ms(100), ms(102), ms(105)}, 0, ms(105), Gap{From: ms(5), To: ms(100)}},
		{"at the end", Times{0, ms(5), Never, Never}, 0, ms(20), Gap{From: ms(5), To: ms(20), Open: true}},
		{"before the first", Times{Never, Never, ms(10), ms(15)}, 0, ms(15), Gap{To: ms(10)}},
	} {
		if got := longest(tc.arrived, tc.from, tc.to); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestWithin(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	p := &Probes{Start: begin, Interval: ms(5), Arrived: Times{0, ms(5), ms(40), Never, ms(45), ms(50), ms(150), ms(155)}, Gap: Gap{From: ms(155), To: ms(800), Open: true}}
	for _, tc := range []struct {
		from, to int
		want     Gap
	}{
		{0, 60, Gap{From: ms(50), To: ms(150)}}, {0, 45, Gap{From: ms(5), To: ms(40)}}, {20, 30, Gap{From: ms(5), To: ms(40)}}, {100, 110, Gap{From: ms(50), To: ms(150)}},
		{0, 1000, p.Gap}, {900, 1000, Gap{}},
	} {
		if got := p.Within(begin.Add(ms(tc.from)), begin.Add(ms(tc.to))); got != tc.want {
			t.Errorf("%d to %d ms: %+v, want %+v", tc.from, tc.to, got, tc.want)
		}
	}
}

func TestLostWithin(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	p := &Probes{Start: begin, Sent: Times{0, ms(5), ms(10), ms(15)}, Arrived: Times{ms(1), Never, Never, Never}}
	want := []time.Time{begin.Add(ms(5)), begin.Add(ms(10))}
	if got := p.LostWithin(begin, begin.Add(ms(15))); !slices.Equal(got, want) {
		t.Errorf("lost at %v, want %v: what is sent at the end of the window is not in it", got, want)
	}
}

// A sender that sleeps is not taken for a network that does.
func TestPaused(t *testing.T) {
	sent := Times{0, ms(5), ms(10), ms(60), ms(65), ms(70)}
	for _, tc := range []struct {
		gap  Gap
		want time.Duration
	}{{Gap{From: ms(11), To: ms(61)}, ms(50)}, {Gap{From: 0, To: ms(4)}, ms(5)}, {Gap{From: ms(66), To: ms(71)}, ms(5)}} {
		if got := paused(sent, tc.gap, ms(5)); got != tc.want {
			t.Errorf("%+v: the sender paused for %s, want %s", tc.gap, got, tc.want)
		}
	}
}

func TestCount(t *testing.T) {
	at := func(seqs ...uint32) (list []arrival) {
		for i, s := range seqs {
			list = append(list, arrival{seq: s, at: ms(i)})
		}
		return list
	}
	first, c := count(at(0, 1, 1, 4, 3, 3, 9), 6)
	if want := (Counts{Sent: 6, Received: 4, Lost: 2, Duplicated: 2, Reordered: 1}); c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
	if diff := cmp.Diff(Times{0, ms(1), Never, ms(4), ms(3), Never}, first); diff != "" {
		t.Errorf("first arrivals (-want +got):\n%s", diff)
	}
}

func TestOneWayOfARunOfWhichNothingArrives(t *testing.T) {
	run := &Probes{Interval: ms(5), Counts: Counts{Sent: 100}}
	if p := OneWay(run, &Arrivals{}); p.Counts.Lost != 100 || !p.Gap.Open || p.Gap.Length() != ms(500) {
		t.Errorf("%+v, want all lost and an open gap of 500 ms", p)
	}
	some := &Arrivals{Flows: []Flow{{Seq: []uint32{0, 1, 2}, At: Times{0, ms(5), ms(10)}}}}
	if p := OneWay(run, some); p.Counts.Lost != 97 || !p.Gap.Open || p.Gap != (Gap{From: ms(10), To: ms(495), Open: true}) {
		t.Errorf("%+v, want 97 lost and an open gap after 10 ms", p)
	}
}

// One way too, a sender that sleeps is told from a network that does, although the clocks are not comparable.
func TestOneWaySaysHowLongTheSenderPaused(t *testing.T) {
	for sent, want := range map[time.Duration]time.Duration{ms(1015): ms(5), ms(1090): ms(80)} {
		run := &Probes{Interval: ms(5), Sent: Times{ms(1000), ms(1005), ms(1010), sent, sent + ms(5)}, Counts: Counts{Sent: 5}}
		seen := &Arrivals{Flows: []Flow{{Seq: []uint32{0, 1, 2, 3, 4}, At: Times{0, ms(5), ms(10), ms(95), ms(100)}}}}
		if p := OneWay(run, seen); p.Gap != (Gap{From: ms(10), To: ms(95), Paused: want}) {
			t.Errorf("gap %+v, want one of 85 ms in which the sender paused for %s", p.Gap, want)
		}
	}
}

func TestResultsSurviveJSON(t *testing.T) {
	r := Result{
		Run: 0xabc, Start: time.Unix(1_800_000_000, 123_456_000).UTC(), Length: time.Second, Bucket: ms(100),
		Probes: []Probes{{
			Peer: netip.MustParseAddr("fd00::1"), Start: time.Unix(1_800_000_000, 0).UTC(), Interval: ms(5), Sent: Times{0, ms(5)}, Arrived: Times{Never, ms(6)},
			Counts: Counts{Sent: 2, Received: 1, Lost: 1}, Gap: Gap{To: ms(6)},
		}},
		Connections: []Connection{{Number: 3, Kind: Upload, Peer: netip.MustParseAddrPort("10.0.0.1:9"), Opened: true, Broken: Reset, Error: "x", Buckets: []int64{1, 2}}},
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got Result
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, b)
	}
}

func TestSpecs(t *testing.T) {
	s := Usual(netip.MustParseAddr("10.0.0.1"))
	s.Defaults()
	if err := s.Validate(); err != nil || s.ID == 0 || s.Ports.Control != ControlPort || s.Silence.Duration == 0 {
		t.Errorf("the usual spec: %v: %+v", err, s)
	}
	var read Spec
	text := `{"peers":["10.0.0.1","fd00::1"],"probe":{"interval":"5ms"},"upload":{"connections":2,"rate":1000},"length":"3s"}`
	if err := json.Unmarshal([]byte(text), &read); err != nil || len(read.Peers) != 2 || read.Probe.Interval.Duration != ms(5) || read.Length.Duration != 3*time.Second {
		t.Errorf("%v: %+v", err, read)
	}
	bad := Spec{Peers: []netip.Addr{{}}, Length: Duration{time.Hour}, Echo: Echoing{Connections: 500}, Upload: Bulk{Rate: -1}, Probe: Probing{Interval: Duration{1}, Size: 3}}
	bad.Defaults()
	err := bad.Validate()
	for _, want := range []string{"an empty address", "length 1h", "500 connections", "upload.rate -1", "probe.interval 1ns", "probe.size 3"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// The pattern is the same in whatever pieces it is written and checked.
func TestPattern(t *testing.T) {
	whole := make([]byte, 1001)
	fill(whole, 7, 0)
	for at, n := 0, 1; at < len(whole); at, n = at+n, n*2+1 {
		piece := make([]byte, min(n, len(whole)-at))
		fill(piece, 7, int64(at))
		if diff := cmp.Diff(whole[at:at+len(piece)], piece); diff != "" {
			t.Fatalf("bytes %d to %d differ from those written at once", at, at+len(piece))
		}
	}
	v := verifier{seed: 7}
	if err := errors.Join(v.check(whole[:13]), v.check(whole[13:500])); err != nil {
		t.Error(err)
	}
	whole[700] ^= 1
	if err := v.check(whole[500:]); err == nil || err.Error() != (errCorrupt{700}).Error() {
		t.Errorf("a wrong byte 700: %v", err)
	}
}

func TestProbeFormat(t *testing.T) {
	b := make([]byte, 64)
	want := probe{kind: typeProbe, flow: 3, run: NewRunID(), seq: 77}
	want.put(b)
	if got, ours, intact := parseProbe(b); got != want || !ours || !intact {
		t.Errorf("%+v, ours %t, intact %t; want %+v", got, ours, intact, want)
	}
	b[4] = typeReply // the type is not covered: the server changes nothing else
	if got, _, intact := parseProbe(b); got.kind != typeReply || !intact {
		t.Errorf("as a reply: %+v, intact %t", got, intact)
	}
	for i := range b[5:] {
		b[5+i] ^= 0x10
		if _, _, intact := parseProbe(b); intact {
			t.Errorf("a wrong byte %d was not seen", 5+i)
		}
		b[5+i] ^= 0x10
	}
	if _, ours, _ := parseProbe([]byte("hello")); ours {
		t.Error("anything is a probe")
	}
}

// A slow stream writes seldom, and never waits longer than a second.
func TestPace(t *testing.T) {
	for rate, want := range map[int64]time.Duration{0: time.Second, 1: time.Second, 5_000: 200 * time.Millisecond, 100_000: 10 * time.Millisecond, 250_000: 10 * time.Millisecond} {
		if got := pace(rate); got != want {
			t.Errorf("at %d bytes a second a stream writes every %s, want %s", rate, got, want)
		}
	}
}

// A timer fires a little early or late; a byte a second is a byte a second all the same. What could not be written is made up for, but not all of it.
func TestPacer(t *testing.T) {
	p := pacer{rate: 1}
	for i, passed := range []int64{999, 1001, 998, 1000, 1003, 999, 1000} {
		n := p.due(time.Duration(passed) * time.Millisecond)
		if n != 1 {
			t.Errorf("after %d ms, the %dth time: %d bytes, want 1", passed, i+1, n)
		}
		p.owed -= float64(n)
	}
	if n := p.due(0); n != 0 {
		t.Errorf("no time later: %d bytes, want none", n)
	}
	if n := p.due(time.Minute); n != maxBurst+1 {
		t.Errorf("a minute later: %d bytes, want %d", n, maxBurst+1)
	}
}

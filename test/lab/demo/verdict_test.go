package demo

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// passed is a migration after which probes arrive, or do not.
func passed(lost int) *passage.Passage {
	start := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	p := traffic.Probes{Peer: netip.MustParseAddr("10.244.0.2"), Start: start, Interval: 5 * time.Millisecond, Counts: traffic.Counts{Sent: 200, Received: 200 - lost, Lost: lost}}
	a := &traffic.Arrivals{Start: start, Flows: []traffic.Flow{{}}}
	for seq := range 200 {
		sent := time.Duration(seq) * p.Interval
		p.Sent, p.Arrived = append(p.Sent, sent), append(p.Arrived, sent+time.Millisecond)
		a.Flows[0].Seq, a.Flows[0].At = append(a.Flows[0].Seq, uint32(seq)), append(a.Flows[0].At, sent+time.Millisecond)
		if seq >= 200-lost {
			p.Arrived[seq] = traffic.Never
			p.Gap = traffic.Gap{From: time.Duration(200-lost) * p.Interval, To: time.Second, Open: true}
		}
	}
	seen := passage.Seen{Result: &traffic.Result{Probes: []traffic.Probes{p}}, Arrivals: a}
	stop := lab.Stop{Stopped: start.Add(500 * time.Millisecond), Resumed: start.Add(520 * time.Millisecond)}
	well := seen
	well.Result = &traffic.Result{Probes: []traffic.Probes{{Peer: p.Peer, Start: start, Interval: p.Interval, Counts: traffic.Counts{Sent: 200, Received: 200}}}}
	return &passage.Passage{Source: "node1", Target: "node2", Stop: stop, To: seen, From: well}
}

// good is a demo that went well.
func good() verdict {
	s := passage.State{
		Node: "node1", Port: "vm/demo/vm1/default", UUID: "4f6c", Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")},
		Options: map[string]string{"requested-chassis": "node1"},
	}
	v := verdict{before: s, after: s, passages: []*passage.Passage{passed(0), passed(0)}}
	v.after.Options = maps.Clone(s.Options)
	for i := range 2 * passage.PerDirection {
		v.connections = append(v.connections, traffic.Connection{Number: uint32(i), Kind: traffic.Echo, Opened: true})
	}
	return v
}

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*verdict)
		// want is in the only problem; empty: there is none.
		want string
	}{
		"all is well": {func(*verdict) {}, ""},
		"a connection broke": {func(v *verdict) {
			v.connections[7].Broken, v.connections[7].Error = traffic.Reset, "connection reset by peer"
		}, "connection 7 (echo"},
		"one was never opened":  {func(v *verdict) { v.connections[3].Opened = false }, "never opened"},
		"one is missing":        {func(v *verdict) { v.connections = v.connections[1:] }, "19 TCP connections"},
		"another row":           {func(v *verdict) { v.after.UUID = "other" }, "UUID"},
		"no row":                {func(v *verdict) { v.after.UUID = "" }, "UUID"},
		"never a row":           {func(v *verdict) { v.before.UUID, v.after.UUID = "", "" }, "UUID"},
		"another address":       {func(v *verdict) { v.after.Addresses = []netip.Addr{netip.MustParseAddr("10.244.0.9")} }, "10.244.0.9"},
		"no address":            {func(v *verdict) { v.after.Addresses = nil }, "addresses"},
		"two chassis requested": {func(v *verdict) { v.after.Options["requested-chassis"] = "node2,node1" }, `"node2,node1"`},
		"the wrong chassis":     {func(v *verdict) { v.after.Options["requested-chassis"] = "node2" }, "requested-chassis"},
		"a strategy is left":    {func(v *verdict) { v.after.Options["activation-strategy"] = "rarp" }, "activation-strategy=rarp"},
		"an empty one too":      {func(v *verdict) { v.after.Options["activation-strategy"] = "" }, "activation-strategy="},
		"it is not back": {func(v *verdict) {
			v.after.Node, v.after.Options["requested-chassis"] = "node2", "node2"
		}, "want it back on node1"},
		"nothing arrives any more": {func(v *verdict) {
			v.passages[1] = passed(100)
		}, "of the probes to VM and back, IPv4 nothing arrived"},
	} {
		t.Run(name, func(t *testing.T) {
			v := good()
			c.change(&v)
			problems := v.problems()
			switch {
			case c.want == "" && len(problems) > 0:
				t.Errorf("problems: %v", errors.Join(problems...))
			case c.want != "" && (len(problems) != 1 || !strings.Contains(problems[0].Error(), c.want)):
				t.Errorf("problems: %v: want one with %q", problems, c.want)
			}
		})
	}
}

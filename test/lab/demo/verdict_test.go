package demo

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// probes are sent every 5 ms for a second; those from one time to another are lost.
func probes(peer string, from, to int) traffic.Probes {
	p := traffic.Probes{Peer: netip.MustParseAddr(peer), Start: start, Interval: 5 * time.Millisecond}
	for ms := 0; ms < 1000; ms += 5 {
		sent := time.Duration(ms) * time.Millisecond
		p.Sent, p.Arrived = append(p.Sent, sent), append(p.Arrived, sent+time.Millisecond)
		p.Counts.Sent++
		if ms >= from && ms < to {
			p.Arrived[len(p.Arrived)-1] = traffic.Never
			p.Counts.Lost++
			continue
		}
		p.Counts.Received++
	}
	if to >= 1000 {
		p.Gap = traffic.Gap{From: time.Duration(from-4) * time.Millisecond, To: time.Second, Open: true}
	}
	return p
}

// arrivals of probes at the peer.
func arrivals(p traffic.Probes) *traffic.Arrivals {
	a := &traffic.Arrivals{Start: start, Flows: []traffic.Flow{{}}}
	for seq, at := range p.Arrived {
		if at != traffic.Never {
			a.Flows[0].Seq, a.Flows[0].At = append(a.Flows[0].Seq, uint32(seq)), append(a.Flows[0].At, at)
		}
	}
	return a
}

// passed is a migration in which probes were lost for 30 ms, while QEMU had stopped the VM and a little longer.
func passed() *passage {
	there, back := probes("10.244.0.2", 500, 530), probes("10.244.0.3", 500, 525)
	return &passage{
		source: "node1", target: "node2", calm: at(100), created: at(300), ended: at(900), stop: lab.Stop{Stopped: at(500), Resumed: at(520)},
		to:   seen{result: &traffic.Result{Probes: []traffic.Probes{there}}, arrivals: arrivals(there)},
		from: seen{result: &traffic.Result{Probes: []traffic.Probes{back}}, arrivals: arrivals(back)},
	}
}

// good is a demo that went well.
func good() verdict {
	s := state{
		node: "node1", port: "vm/demo/vm1/default", uuid: "4f6c", addresses: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")},
		options: map[string]string{"requested-chassis": "node1"},
	}
	v := verdict{before: s, after: s, passages: []*passage{passed(), passed()}}
	v.after.options = maps.Clone(s.options)
	for i := range 2 * perDirection {
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
		"another row":           {func(v *verdict) { v.after.uuid = "other" }, "UUID"},
		"no row":                {func(v *verdict) { v.after.uuid = "" }, "UUID"},
		"never a row":           {func(v *verdict) { v.before.uuid, v.after.uuid = "", "" }, "UUID"},
		"another address":       {func(v *verdict) { v.after.addresses = []netip.Addr{netip.MustParseAddr("10.244.0.9")} }, "10.244.0.9"},
		"no address":            {func(v *verdict) { v.after.addresses = nil }, "addresses"},
		"two chassis requested": {func(v *verdict) { v.after.options["requested-chassis"] = "node2,node1" }, `"node2,node1"`},
		"the wrong chassis":     {func(v *verdict) { v.after.options["requested-chassis"] = "node2" }, "requested-chassis"},
		"a strategy is left":    {func(v *verdict) { v.after.options["activation-strategy"] = "rarp" }, "activation-strategy=rarp"},
		"an empty one too":      {func(v *verdict) { v.after.options["activation-strategy"] = "" }, "activation-strategy="},
		"it is not back": {func(v *verdict) {
			v.after.node, v.after.options["requested-chassis"] = "node2", "node2"
		}, "want it back on node1"},
		"nothing arrives any more": {func(v *verdict) {
			there := probes("10.244.0.2", 500, 1000)
			v.passages[1].to.result.Probes[0] = there
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

// The interruption is the silence around QEMU's stop. What is longer elsewhere, and what there is without a migration, stands beside it.
func TestPassageDirections(t *testing.T) {
	p := passed()
	there := &p.to.result.Probes[0]
	for seq := 140; seq < 150; seq++ { // a pause of the machine's, after the migration's interruption
		there.Arrived[seq] = traffic.Never
	}
	p.to.arrivals.Flows[0].Seq = append(p.to.arrivals.Flows[0].Seq, 3, 4)
	p.to.arrivals.Flows[0].At = append(p.to.arrivals.Flows[0].At, time.Second, time.Second)
	p.stop.Resumed = at(100)
	p.stop.Stopped = at(99)
	p.created = at(98)
	p.calm = at(50)
	all := p.directions()
	if len(all) != 2 || all[0].Name != "to VM and back, IPv4" || all[1].Name != "from VM, IPv4" {
		t.Fatalf("directions: %+v", all)
	}
	to := all[0]
	if got := to.Silence(); got != 35*time.Millisecond {
		t.Errorf("interruption of %s: want 35ms, the gap within %s after QEMU's stop", got, lateGap)
	}
	if to.Elsewhere != 55*time.Millisecond || to.Quiet != 5*time.Millisecond {
		t.Errorf("elsewhere %s, undisturbed %s: want 55ms and 5ms", to.Elsewhere, to.Quiet)
	}
	if to.Duplicated != 2 {
		t.Errorf("%d duplicated: want the 2 that the VM got twice", to.Duplicated)
	}
}

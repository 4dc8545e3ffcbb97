package timeline

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var zero = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func at(ms float64) time.Time { return zero.Add(time.Duration(ms * float64(time.Millisecond))) }

// sample is a migration as it is measured, from fixed numbers.
func sample() *Migration {
	m := &Migration{
		VM: "vm-a", Address: "10.16.0.23, fd00:10:16::17", Source: "node1", Target: "node2", Stopped: at(2431.2), Resumed: at(2512.4),
		Connections: Connections{Total: 20, Kept: 20, Stall: 312_400 * time.Microsecond},
	}
	for _, s := range []struct {
		ms     float64
		actor  Actor
		name   string
		detail string
	}{
		{0, KubeVirt, "migration created", "kubevirt-migrate-vm-x7k2p"}, {21.4, KubeVirt, "target pod created", "virt-launcher-vm-a-8xz4q"},
		{34.0, KubeVirt, "target pod scheduled", "node2"}, {41.9, Controller, "ports prepared", "requested-chassis=node1,node2 activation-strategy=rarp"},
		{43.1, Controller, "attach allowed", ""}, {377.5, Agent, "target attached", "ovn-installed"}, {371.2, OVN, "additional chassis", "node2"},
		{1502.7, KubeVirt, "target ready", ""}, {1544.0, QEMU, "memory copy begins", ""},
		{2513.4, QEMU, "RARP sent", ""}, {2514.1, Agent, "RARP seen", ""}, {2515.2, OVN, "target activated", "additional-chassis-activated=node2"},
		{2516.0, Agent, "first frame of the VM", ""}, {2430.1, Agent, "last frame on the source", ""},
		{2547.9, KubeVirt, "target domain ready", ""}, {2561.3, Controller, "ports committed", "requested-chassis=node2"},
		{2574.8, OVN, "main chassis is node2", ""}, {3256.1, KubeVirt, "migration succeeded", ""}, {3391.0, Agent, "source port removed", ""},
	} {
		m.Stages = append(m.Stages, Stage{At: at(s.ms), Actor: s.actor, Name: s.name, Detail: s.detail})
	}
	random := rand.New(rand.NewPCG(1, 2))
	there := Direction{Name: "to the VM and back", Interval: 5 * time.Millisecond, Sent: 1200}
	back := Direction{Name: "from the VM", Interval: 5 * time.Millisecond, Sent: 1184}
	for i := range 1200 {
		sent := -1000 + 5*float64(i)
		got := sent + 0.6 + random.Float64()*0.6
		switch {
		case sent > 2428.2 && sent < 2440:
			there.Missing, there.Lost = append(there.Missing, at(sent)), there.Lost+1
			continue
		case sent >= 2440 && sent < 2517:
			got = 2517.3 + (sent-2440)/30
		}
		there.Arrivals = append(there.Arrivals, at(got))
	}
	for i := range 1184 {
		sent := -1000 + 5*float64(i)
		if sent > 2431 {
			sent += 81.2 + 1.9
		}
		back.Arrivals = append(back.Arrivals, at(sent+0.4+random.Float64()*0.4))
	}
	there.Quiet, back.Elsewhere = 9_300*time.Microsecond, 93*time.Millisecond
	m.Directions = []Direction{there, back}
	for i := range m.Directions {
		measure(&m.Directions[i])
	}
	up, down := Series{Name: "to the VM", Start: at(-1000), Bucket: 100 * time.Millisecond}, Series{Name: "from the VM", Start: at(-1000), Bucket: 100 * time.Millisecond}
	for i := range 60 {
		share := 1.0
		switch i {
		case 34:
			share = 0.69
		case 35:
			share = 0.64
		}
		up.Bytes = append(up.Bytes, int64(share*(24_000+random.Float64()*2000)))
		down.Bytes = append(down.Bytes, int64(share*(17_000+random.Float64()*3000)))
	}
	m.Throughput = []Series{up, down}
	return m
}

// measure finds the longest silence.
func measure(d *Direction) {
	sorted := slices.SortedFunc(slices.Values(d.Arrivals), time.Time.Compare)
	for i := 1; i < len(sorted); i++ {
		if sorted[i].Sub(sorted[i-1]) > d.Silence() {
			d.From, d.To = sorted[i-1], sorted[i]
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); look at it, then run the test with -update:\n%s", path, diff)
	}
}

func TestGolden(t *testing.T) {
	var text, svg bytes.Buffer
	m := sample()
	if err := errors.Join(m.WriteText(&text), m.WriteSVG(&svg)); err != nil {
		t.Fatal(err)
	}
	golden(t, "migration.txt", text.Bytes())
	golden(t, "migration.svg", svg.Bytes())
}

// draw draws a migration and fails if the picture is no XML or has something in it that is no number.
func draw(t *testing.T, m *Migration) string {
	t.Helper()
	var b bytes.Buffer
	if err := m.WriteSVG(&b); err != nil {
		t.Fatal(err)
	}
	for dec := xml.NewDecoder(bytes.NewReader(b.Bytes())); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
	}
	for _, wrong := range []string{"NaN", "Inf", "%!", "http://www.w3.org/2000/svg/", "<script", "url("} {
		if strings.Contains(b.String(), wrong) {
			t.Errorf("the picture has %q", wrong)
		}
	}
	return b.String()
}

// Whatever is missing, what is left is drawn.
func TestPartialInput(t *testing.T) {
	for name, change := range map[string]func(*Migration){
		"far from zero":      func(m *Migration) { m.Zero = time.Time{}.Add(time.Hour) },
		"nothing but probes": func(m *Migration) { m.Stages, m.Stopped, m.Resumed = nil, time.Time{}, time.Time{} },
		"nothing":            func(m *Migration) { *m = Migration{} },
		"no probes":          func(m *Migration) { m.Directions = nil },
		"no stop":            func(m *Migration) { m.Stopped, m.Resumed = time.Time{}, time.Time{} },
		"neither":            func(m *Migration) { m.Directions, m.Stopped = nil, time.Time{} },
		"no throughput":      func(m *Migration) { m.Throughput = nil },
		"one stage":          func(m *Migration) { m.Stages = m.Stages[:1] },
		"no stages":          func(m *Migration) { m.Stages = nil },
		"all at once": func(m *Migration) {
			m.Stages = m.Stages[:4]
			for i := range m.Stages {
				m.Stages[i].At = zero
			}
		},
		"open":             func(m *Migration) { m.Directions[0].Open, m.Directions[0].To = true, at(9000) },
		"no arrival":       func(m *Migration) { m.Directions[0].Arrivals = nil },
		"three directions": func(m *Migration) { m.Directions = append(m.Directions, m.Directions[0]) },
		"zero length":      func(m *Migration) { m.Stopped = m.Resumed; m.Directions[0].To = m.Directions[0].From },
		"markup in names":  func(m *Migration) { m.VM, m.Stages[0].Name, m.Stages[0].Actor = "<b>&\"'", "]]><x", "<&>" },
	} {
		t.Run(name, func(t *testing.T) {
			m := sample()
			change(m)
			draw(t, m)
			var text bytes.Buffer
			if err := m.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text.String(), "%!") {
				t.Errorf("the text has a wrong format:\n%s", text.String())
			}
		})
	}
}

// What is bad is said, and shown as such.
func TestBrokenConnectionsAndSilenceWithoutEndAreNamed(t *testing.T) {
	m := sample()
	m.Connections.Kept = 19
	m.Directions[1].Open, m.Directions[1].To = true, at(4900)
	m.Directions[0].Paused = 60 * time.Millisecond
	if svg := draw(t, m); !strings.Contains(svg, `<tspan class="figure bad">19 of 20</tspan>`) || !strings.Contains(svg, "and none since") {
		t.Error("the picture does not show a broken connection, or that nothing arrives any more")
	}
	var text bytes.Buffer
	if err := m.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "19 of 20") || !strings.Contains(text.String(), "and none since") || !strings.Contains(text.String(), "the sender itself paused for 60.0 ms") {
		t.Errorf("the text does not say it:\n%s", text.String())
	}
}

// No label covers another or a dot, however close the stages are.
func TestLabelsDoNotOverlap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	s := scale{from: zero, to: at(1000), left: plotLeft, right: plotRight}
	for round := range 2000 {
		var stages []Stage
		n, spread := 1+random.IntN(9), []float64{3, 30, 300, 1000}[round%4]
		begin := random.Float64() * (1000 - spread)
		for range n {
			stages = append(stages, Stage{At: at(begin + random.Float64()*spread), Name: strings.Repeat("name ", 1+random.IntN(5))})
		}
		slices.SortFunc(stages, func(a, b Stage) int { return a.At.Compare(b.At) })
		var dots []float64
		for _, st := range stages {
			dots = append(dots, s.x(st.At))
		}
		labels, rows := place(stages, dots, s, zero)
		for i := range labels {
			b := labels[i].box()
			if labels[i].row >= rows || b.x < s.left || b.x+b.w > s.right+padding {
				t.Fatalf("round %d: label %+v is outside the lane of %d rows", round, b, rows)
			}
			for j := range labels[:i] {
				if b.overlaps(labels[j].box()) {
					t.Fatalf("round %d: labels of %v and %v overlap", round, stages[i], stages[j])
				}
			}
			for _, x := range dots {
				if b.overlaps(box{x: x - dotRadius, w: 2 * dotRadius, h: rowHeight}) {
					t.Fatalf("round %d: the label of %v covers a dot", round, stages[i])
				}
			}
		}
	}
}

func TestTicks(t *testing.T) {
	for _, window := range []float64{3, 10, 47, 220, 999, 3391, 12345, 86400000} {
		s := scale{from: at(-window / 3), to: at(window * 2 / 3), left: 0, right: 1000}
		ticks := s.ticks(zero)
		if len(ticks) < 3 || len(ticks) > maxTicks+1 || !slices.ContainsFunc(ticks, zero.Equal) {
			t.Errorf("a window of %g ms has ticks %v; want 3 to %d, zero among them", window, ticks, maxTicks+1)
		}
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0", 49 * time.Microsecond: "0.0", 1234567 * time.Microsecond: "1,234.6", -250 * time.Microsecond: "−0.3", -3 * time.Second: "−3,000.0",
	} {
		if got := grouped(d); got != want {
			t.Errorf("%s is written %q, want %q", d, got, want)
		}
	}
	for v, want := range map[float64]string{900: "900 B/s", 250_000: "250 kB/s", 1.5e6: "1.5 MB/s"} {
		if got := rate(v); got != want {
			t.Errorf("%g bytes a second are written %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]float64{1: 1, 260_000: 300_000, 9: 10, 10: 10, 8.1e6: 1e7} {
		if got := nice(v); got != want {
			t.Errorf("the next round number of %g is %g, want %g", v, got, want)
		}
	}
}

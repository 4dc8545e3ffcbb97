package timeline

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	beadRow   = 92.0
	beadLine  = 76.0 // from the row's top to where beads sit
	beadTop   = 36.0 // and to the highest
	maxBead   = 3.4
	minBead   = 0.9
	maxStack  = 9
	silenceAt = 13.0
)

// beads draws one direction: a bead for each arrival on a line, those that come together one above the other; crosses for probes that were sent and did not
// arrive; the silence shaded. It returns where the row ends.
func (p *panel) beads(d *Direction, i int, top float64) float64 {
	base := top + beadLine
	p.ground.rect("lane", box{p.left, top, p.right - p.left, beadRow - 3})
	label := base - 14
	if d.Quiet > 0 {
		label -= 16
		p.text(point{p.left - 12, base + 2}, end, [2]string{"ms", "undisturbed: " + millis(d.Quiet) + " ms"})
	}
	p.text(point{p.left - 12, label}, end, [2]string{"name", d.Name})
	p.text(point{p.left - 12, label + 16}, end, [2]string{"ms", fmt.Sprintf("%s lost, %s dup.", thousands(d.Lost), thousands(d.Duplicated))})
	p.silence(d, i, top)
	spacing := p.perInterval(d.Interval)
	r := min(max(spacing*0.4, minBead), maxBead)
	step := min(2*r+0.6, (beadLine-beadTop)/(maxStack-1))
	for _, b := range p.stack(d.Arrivals, min(2*r, spacing*0.6)) {
		p.circle(fmt.Sprintf("d%d", i), point{b.x, base - b.y*step}, r)
	}
	for _, t := range d.Missing {
		if x := p.x(t); p.holds(t) {
			p.line("lost", point{x - r, base - r}, point{x + r, base + r})
			p.line("lost", point{x - r, base + r}, point{x + r, base - r})
		}
	}
	return top + beadRow
}

// stack gives each arrival in the window its x, and a level: 0 on the line, more where the last one is nearer than apart.
func (p *panel) stack(arrivals []time.Time, apart float64) []point {
	sorted := slices.SortedFunc(slices.Values(arrivals), time.Time.Compare)
	var points []point
	last := make([]float64, maxStack)
	for i := range last {
		last[i] = math.Inf(-1)
	}
	for _, t := range sorted {
		if !p.holds(t) {
			continue
		}
		x, level := p.x(t), 0
		for level < maxStack-1 && x-last[level] < apart {
			level++
		}
		last[level] = x
		points = append(points, point{x, float64(level)})
	}
	return points
}

// centre is where a text is put that belongs between two x, so that it does not leave the panel.
func (p *panel) centre(from, to float64, says string) float64 {
	half := textWidth(says, labelSize)/2 + 4
	return min(max((from+to)/2, p.left+half), p.right-half)
}

// silence shades the longest time without an arrival and says how long it was.
func (p *panel) silence(d *Direction, i int, top float64) {
	if d.From.IsZero() || d.Silence() <= 0 {
		return
	}
	from, to := p.clamp(d.From), p.clamp(d.To)
	p.ground.rect(fmt.Sprintf("gap%d", i), box{from, top, to - from, beadRow - 3})
	all := []string{millis(d.Silence()) + " ms without an arrival"}
	if lost := d.Unanswered(); lost > 0 {
		all = append(all, millis(lost)+" ms of it lost")
	}
	says := strings.Join(append(all, d.notes()...), ", ")
	p.text(point{p.centre(from, to, says), top + silenceAt + 3}, middle, [2]string{fmt.Sprintf("strong d%d", i), says})
	edge, y := fmt.Sprintf("edge%d", i), top+silenceAt+12
	p.line(edge, point{from, y}, point{to, y})
	p.line(edge, point{from, y - 4}, point{from, y + 4})
	p.line(edge, point{to, y - 4}, point{to, y + 4})
}

package timeline

import (
	"fmt"
	"io"
	"time"
)

const (
	width      = 1200.0
	marginX    = 24.0
	plotLeft   = 176.0
	plotRight  = 1176.0
	axisHeight = 24.0
	funnel     = 34.0 // from the whole to the detail
	// around is how much of the time before and after the interruption the detail shows, in parts of the interruption, with its bounds.
	around, atLeast, atMost = 0.75, 40 * time.Millisecond, 500 * time.Millisecond
)

// WriteSVG writes the picture: the key figures; the whole migration with a lane of stages for each actor and the throughput; and, enlarged, the time around
// the interruption with every probe. It needs nothing but itself, and suits light and dark pages.
func (m *Migration) WriteSVG(w io.Writer) error {
	c := &canvas{}
	y := m.head(c)
	stages := m.stages()
	detail, hasDetail := m.detail()
	if len(stages) > 1 {
		y = m.whole(c, y, stages, detail)
	}
	if hasDetail {
		y = m.closeUp(c, y, detail)
	}
	height := num(y + 12)
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" width="%s" height="%s" role="img">
<title>%s</title>
%s
<rect class="paper" width="%s" height="%s"/>
%s</svg>
`, num(width), height, num(width), height, escape(fmt.Sprintf("%s: %s → %s", m.subject(), m.Source, m.Target)), stylesheet(), num(width), height, c.b.String())
	return err
}

// head writes the title and the key figures, and returns where they end.
func (m *Migration) head(c *canvas) float64 {
	c.text(point{marginX, 46}, start, [2]string{"title", fmt.Sprintf("Live migration of %s: %s → %s", m.VM, m.Source, m.Target)})
	if m.Address != "" {
		c.text(point{plotRight, 46}, end, [2]string{"sub", m.Address})
	}
	figures := m.figures()
	free := plotRight - marginX
	for _, f := range figures {
		free -= f.width()
	}
	x := marginX
	for _, f := range figures {
		c.text(point{x, 98}, start, [2]string{f.class, f.value})
		c.text(point{x, 120}, start, [2]string{"small", f.caption})
		x += f.width() + max(free/float64(max(len(figures)-1, 1)), 0)
	}
	return 138
}

// figure is one of the key figures.
type figure struct{ class, value, caption string }

func (f figure) width() float64 { return max(textWidth(f.value, 31), textWidth(f.caption, 13)) }

func (m *Migration) figures() []figure {
	var all []figure
	if d := m.Interruption(); d != nil {
		all = append(all, figure{"figure", millis(d.Silence()) + " ms", "longest silence, " + d.Name})
	}
	if m.Stop() > 0 {
		all = append(all, figure{"figure amber", millis(m.Stop()) + " ms", "QEMU had stopped the VM"})
		if d := m.Interruption(); d != nil {
			all = append(all, figure{"figure", millis(m.Beyond(d)) + " ms", fmt.Sprintf("beyond that; a probe every %s", d.Interval)})
		}
	}
	if sent, lost, duplicated := m.totals(); sent > 0 {
		all = append(all, figure{"figure", fmt.Sprintf("%s lost", thousands(lost)), fmt.Sprintf("of %s probes, %s duplicated", thousands(sent), thousands(duplicated))})
	}
	if n := m.Connections; n.Total > 0 {
		class := "figure"
		if n.Kept < n.Total {
			class = "figure bad"
		}
		all = append(all, figure{class, fmt.Sprintf("%d of %d", n.Kept, n.Total), "TCP connections kept"})
	}
	return all
}

// detail is the window around the interruption and QEMU's stop.
func (m *Migration) detail() (scale, bool) {
	s := scale{left: plotLeft, right: plotRight}
	extend := func(from, to time.Time) {
		if from.IsZero() || to.IsZero() {
			return
		}
		if s.from.IsZero() || from.Before(s.from) {
			s.from = from
		}
		if to.After(s.to) {
			s.to = to
		}
	}
	extend(m.Stopped, m.Resumed)
	for _, d := range m.shown() {
		extend(d.From, d.To)
	}
	if s.from.IsZero() {
		return s, false
	}
	pad := min(max(time.Duration(around*float64(s.to.Sub(s.from))), atLeast), atMost)
	s.from, s.to = s.from.Add(-pad), s.to.Add(pad)
	return s, true
}

// shown are the directions that are drawn.
func (m *Migration) shown() []Direction { return m.Directions[:min(len(m.Directions), 2)] }

// whole draws the panel of all stages, and returns where it ends.
func (m *Migration) whole(c *canvas, top float64, stages []Stage, detail scale) float64 {
	first, last := stages[0].At, stages[len(stages)-1].At
	margin := last.Sub(first)/50 + time.Millisecond
	p := &panel{zero: m.zero(), scale: scale{from: first.Add(-margin), to: last.Add(margin), left: plotLeft, right: plotRight}}
	c.text(point{marginX, top + 22}, start, [2]string{"head ink", "The whole migration"}, [2]string{"small", m.unit()})
	top += 34
	inDetail := func(s Stage) bool { return !detail.from.IsZero() && detail.holds(s.At) }
	y := p.throughput(m.Throughput, p.lanes(stages, top, inDetail))
	p.finish(c, top, y, func(c *canvas) {
		if !detail.from.IsZero() {
			from, to := p.clamp(detail.from), p.clamp(detail.to)
			c.rect("zoom", box{from, top, to - from, y + axisHeight - top})
			c.polygon("zoom", []point{{from, y + axisHeight}, {to, y + axisHeight}, {plotRight, y + axisHeight + funnel}, {plotLeft, y + axisHeight + funnel}})
		}
		m.stop(c, p, top, y)
	})
	return y + axisHeight
}

// unit says what the numbers are.
func (m *Migration) unit() string {
	for _, s := range m.stages() {
		if s.At.Equal(m.zero()) {
			return "ms since: " + s.Name
		}
	}
	return "ms"
}

// stop shades the time in which QEMU had stopped the VM.
func (m *Migration) stop(c *canvas, p *panel, top, bottom float64) {
	if m.Stop() <= 0 {
		return
	}
	from, to := p.clamp(m.Stopped), p.clamp(m.Resumed)
	c.rect("stop", box{from, top, max(to-from, 1), bottom - top})
}

// closeUp draws the panel around the interruption, and returns where it ends.
func (m *Migration) closeUp(c *canvas, top float64, detail scale) float64 {
	p := &panel{zero: m.zero(), scale: detail}
	top += funnel
	c.rect("zoom", box{plotLeft, top, plotRight - plotLeft, 24})
	c.text(point{marginX, top}, start, [2]string{"head ink", "The interruption"})
	c.text(point{marginX, top + 18}, start, [2]string{"small", "enlarged"})
	if m.Stop() > 0 {
		says := "QEMU had stopped the VM for " + millis(m.Stop()) + " ms"
		c.text(point{p.centre(p.clamp(m.Stopped), p.clamp(m.Resumed), says), top + 17}, middle, [2]string{"strong amber", says})
	}
	top += 24
	y := p.lanes(m.stages(), top, func(Stage) bool { return false })
	lanesEnd := y
	for i, d := range m.shown() {
		y = p.beads(&d, i, y)
	}
	if len(m.Directions) > 0 {
		c.text(point{marginX, y + 16}, start, [2]string{"tick", "• arrival"}, [2]string{"tick bad", "×"}, [2]string{"tick", "lost"})
	}
	p.finish(c, top, y, func(c *canvas) {
		m.stop(c, p, top, lanesEnd)
		if m.Stop() > 0 {
			for _, t := range []time.Time{m.Stopped, m.Resumed} {
				c.line("stopedge", point{p.clamp(t), lanesEnd}, point{p.clamp(t), y})
			}
		}
	})
	return y + axisHeight
}

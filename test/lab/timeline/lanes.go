package timeline

import (
	"time"
)

const (
	rowHeight = 17.0
	laneInset = 8.0
	dotRadius = 4.5
	labelSize = 12.5
	labelGap  = 9.0 // between a dot and its label
	padding   = 5.0 // between labels
)

// label is where a stage's label is.
type label struct {
	stage Stage
	x     float64 // of the dot
	row   int     // 0 is beside the dot, others are below
	side  anchor  // start: to the right of x; end: to the left
	width float64
	text  [2][2]string
}

// box is what the label covers, with the lane's top at 0.
func (l *label) box() box {
	b := box{x: l.x + labelGap, y: float64(l.row) * rowHeight, w: l.width + padding, h: rowHeight}
	if l.side == end {
		b.x = l.x - labelGap - l.width - padding
	}
	return b
}

// leader is the line from the dot to a label that is below.
func (l *label) leader() box {
	return box{x: l.x - 1, y: rowHeight * 0.5, w: 2, h: float64(l.row) * rowHeight}
}

// place finds room for the labels of one lane, so that no two overlap, and no label covers a dot; leaders cross labels only if there is no other way. It
// returns the number of rows. Stages are in the order of time; dots are all that the lane has, also those of stages without a label.
func place(stages []Stage, dots []float64, s scale, zero time.Time) ([]label, int) {
	labels := make([]label, len(stages))
	for i, st := range stages {
		text := [2][2]string{{"name", st.Name}, {"ms", grouped(st.At.Sub(zero))}}
		labels[i] = label{stage: st, x: s.x(st.At), width: textWidth(text[0][1], labelSize) + spanGap + textWidth(text[1][1], labelSize), text: text}
	}
	rows := 1
	// The last first: a label is to the right of its dot, over the dots that follow, whose own labels are then above it. Near the right edge it is the other
	// way round.
	var order []int
	for i := len(labels) - 1; i >= 0; i-- {
		if fits(&labels[i], s, start) {
			order = append(order, i)
		}
	}
	for i := range labels {
		if !fits(&labels[i], s, start) {
			order = append(order, i)
		}
	}
	r := room{scale: s, dots: dots}
	for n, i := range order {
		r.pending = r.pending[:0]
		for _, later := range order[n+1:] {
			r.pending = append(r.pending, labels[later].x)
		}
		l := &labels[i]
		r.settle(l)
		r.placed = append(r.placed, l)
		rows = max(rows, l.row+1)
	}
	return labels, rows
}

// fits tells whether a label on a side of its dot is in the picture.
func fits(l *label, s scale, side anchor) bool {
	probe := *l
	probe.side = side
	b := probe.box()
	return b.x >= s.left && b.x+b.w <= s.right+padding
}

// room is a lane that fills with labels.
type room struct {
	scale
	dots   []float64
	placed []*label
	// pending are the dots whose labels have no place yet.
	pending []float64
}

// settle chooses row and side: first without crossings, then with.
func (r *room) settle(l *label) {
	for _, tidy := range []func(*label) bool{r.tidy, func(*label) bool { return true }} {
		for row := range len(r.placed) + 3 {
			for _, side := range []anchor{start, end} {
				l.row, l.side = row, side
				if fits(l, r.scale, side) && r.free(l) && tidy(l) {
					return
				}
			}
		}
	}
	l.row, l.side = len(r.placed)+3, start // wider than the picture
}

// free tells whether a label is where nothing else is.
func (r *room) free(l *label) bool {
	b := l.box()
	for _, x := range r.dots {
		if b.overlaps(box{x: x - dotRadius - 1, w: 2*dotRadius + 2, h: rowHeight}) {
			return false
		}
	}
	for _, o := range r.placed {
		if b.overlaps(o.box()) {
			return false
		}
	}
	return true
}

// tidy tells whether no leader runs through a label, also none of those to come.
func (r *room) tidy(l *label) bool {
	b := l.box()
	for _, x := range r.pending {
		if x > b.x && x < b.x+b.w {
			return false
		}
	}
	for _, o := range r.placed {
		if l.row > 0 && l.leader().overlaps(o.box()) || o.row > 0 && o.leader().overlaps(b) {
			return false
		}
	}
	return true
}

// panel is a part of the picture with one axis of time.
type panel struct {
	scale
	zero time.Time
	// What is drawn on the panel is in front of the grid and of bands, what is in ground behind them.
	canvas
	ground canvas
}

// finish puts the panel on a picture: the ground, then bands, then the grid, then the rest.
func (p *panel) finish(c *canvas, top, bottom float64, bands func(*canvas)) {
	c.b.WriteString(p.ground.b.String())
	bands(c)
	p.axis(c, p.zero, top, bottom)
	c.b.WriteString(p.b.String())
}

// lanes draws a lane for each actor that has stages in the window, from top on, and returns where they end. Stages for which quiet holds have a dot, but no
// label.
func (p *panel) lanes(stages []Stage, top float64, quiet func(Stage) bool) float64 {
	var shown []Stage
	for _, st := range stages {
		if p.holds(st.At) {
			shown = append(shown, st)
		}
	}
	for _, a := range actors(shown) {
		var dots []float64
		var named []Stage
		for _, st := range shown {
			if st.Actor != a {
				continue
			}
			dots = append(dots, p.x(st.At))
			if !quiet(st) {
				named = append(named, st)
			}
		}
		labels, rows := place(named, dots, p.scale, p.zero)
		height := float64(rows)*rowHeight + laneInset
		p.ground.rect("lane", box{p.left, top, p.right - p.left, height - 3})
		p.text(point{p.left - 12, top + laneInset/2 + rowHeight*0.75}, end, [2]string{"name", string(a)})
		p.lane(a, labels, dots, top+laneInset/2-1)
		top += height
	}
	return top
}

// lane draws the stages of one actor; top is that of the first row.
func (p *panel) lane(a Actor, labels []label, dots []float64, top float64) {
	for i := range labels {
		l := &labels[i]
		if l.row == 0 {
			continue
		}
		to := point{l.x, top + (float64(l.row)+0.5)*rowHeight}
		p.line("leader", point{l.x, top + rowHeight/2}, to)
		p.line("leader", to, point{l.x + map[anchor]float64{start: labelGap - 2, end: 2 - labelGap}[l.side], to.y})
	}
	for _, x := range dots {
		p.circle(dotClass(a), point{x, top + rowHeight/2}, dotRadius)
	}
	for i := range labels {
		l := &labels[i]
		x := l.x + map[anchor]float64{start: labelGap, end: -labelGap}[l.side]
		p.text(point{x, top + (float64(l.row)+0.5)*rowHeight + labelSize*0.36}, l.side, l.text[:]...)
	}
}

// dotClass tells Godwit's own stages from others', and QEMU's from both.
func dotClass(a Actor) string {
	switch a {
	case Controller, Agent:
		return "godwit"
	case QEMU:
		return "qemu"
	}
	return "other"
}

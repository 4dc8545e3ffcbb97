package prometheus

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Line is one series of a picture's panel.
type Line struct {
	Name   string
	Points []model.SamplePair
}

// Graph is one panel: lines, or, where Colors says what colour each value has, a row of states for each of them.
type Graph struct {
	Title, Unit string
	Lines       []Line
	Colors      map[int]string
}

// Sizes of a picture, in pixels.
const (
	graphWidth, graphHeight = 560.0, 224.0
	plotX, plotY            = 70.0, 34.0
	plotWidth, plotHeight   = 470.0, 100.0
	columns                 = 2
	legendLines             = 5
)

// WriteSVG draws graphs of one stretch of time, two in a row: what a person looks at instead of a Grafana.
func WriteSVG(w io.Writer, title string, graphs []Graph, from, to time.Time) error {
	var b strings.Builder
	rows := (len(graphs) + columns - 1) / columns
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="#fff"/><text x="12" y="26" font-size="18">%s</text>`,
		columns*graphWidth, float64(rows)*graphHeight+44, html.EscapeString(title))
	for i, g := range graphs {
		fmt.Fprintf(&b, `<g transform="translate(%g %g)">`, float64(i%columns)*graphWidth, float64(i/columns)*graphHeight+44)
		g.draw(&b, from, to)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// draw draws a graph at the origin.
func (g Graph) draw(b *strings.Builder, from, to time.Time) {
	low, high := g.bounds()
	fmt.Fprintf(b, `<text x="%g" y="20" font-weight="bold">%s</text><rect x="%g" y="%g" width="%g" height="%g" fill="none" stroke="#ccc"/>`, plotX, html.EscapeString(g.Title), plotX, plotY, plotWidth, plotHeight)
	fmt.Fprintf(b, `<text x="%g" y="%g">%s</text><text x="%g" y="%g" text-anchor="end">%s</text>`, plotX, plotY+plotHeight+14, from.Format(time.TimeOnly), plotX+plotWidth, plotY+plotHeight+14, to.Format(time.TimeOnly))
	if len(g.Colors) == 0 {
		fmt.Fprintf(b, `<text x="%g" y="%g" text-anchor="end">%.3g</text><text x="%g" y="%g" text-anchor="end">%s</text><text x="%g" y="%g" text-anchor="end">%.3g</text>`,
			plotX-6, plotY+8, high, plotX-6, plotY+22, html.EscapeString(g.Unit), plotX-6, plotY+plotHeight, low)
	}
	x := func(p model.SamplePair) float64 {
		return plotX + plotWidth*float64(p.Timestamp.Time().Sub(from))/float64(to.Sub(from))
	}
	for i, l := range g.Lines {
		color := fmt.Sprintf("hsl(%d 65%% 45%%)", i*67%360)
		if len(g.Colors) > 0 {
			l.states(b, x, g.Colors, plotY+float64(i)*plotHeight/float64(len(g.Lines)), plotHeight/float64(len(g.Lines)))
		} else {
			var points strings.Builder
			for _, p := range l.Points {
				if v := float64(p.Value); !math.IsNaN(v) {
					fmt.Fprintf(&points, "%.1f,%.1f ", x(p), plotY+plotHeight*(1-(v-low)/(high-low)))
				}
			}
			fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`, points.String(), color)
		}
		if i < legendLines {
			fmt.Fprintf(b, `<text x="%g" y="%g" fill="%s">%s</text>`, plotX, plotY+plotHeight+30+12*float64(i), color, html.EscapeString(l.Name))
		}
	}
}

// states draws a row of coloured stretches, each until the next sample.
func (l Line) states(b *strings.Builder, x func(model.SamplePair) float64, colors map[int]string, top, height float64) {
	for i := 0; i+1 < len(l.Points); i++ {
		p, next := l.Points[i], l.Points[i+1]
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, x(p), top+2, x(next)-x(p)+0.3, height-4, colors[int(p.Value)])
	}
}

// bounds are the least and the greatest value, zero among them, and never the same.
func (g Graph) bounds() (low, high float64) {
	for _, l := range g.Lines {
		for _, p := range l.Points {
			if v := float64(p.Value); !math.IsNaN(v) {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high == low {
		high = low + 1
	}
	return low, high
}

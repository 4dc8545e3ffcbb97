package timeline

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// canvas collects the elements of a picture.
type canvas struct{ b strings.Builder }

// anchor is which end of a text is at its x.
type anchor string

const (
	start  anchor = "start"
	middle anchor = "middle"
	end    anchor = "end"
)

// point is in pixels of a picture of the nominal width.
type point struct{ x, y float64 }

// box is an area.
type box struct{ x, y, w, h float64 }

func (b box) overlaps(o box) bool {
	return b.x < o.x+o.w && o.x < b.x+b.w && b.y < o.y+o.h && o.y < b.y+b.h
}

// num writes a coordinate to a tenth of a pixel.
func num(v float64) string {
	s := strconv.FormatFloat(v, 'f', 1, 64)
	s = strings.TrimSuffix(s, ".0")
	if s == "-0" {
		return "0"
	}
	return s
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

// spanGap is between two spans of a text: spaces are not kept by every program.
const spanGap = 7.0

// text writes spans one after another; each is a class and what it says.
func (c *canvas) text(p point, a anchor, spans ...[2]string) {
	fmt.Fprintf(&c.b, `<text x="%s" y="%s" text-anchor="%s">`, num(p.x), num(p.y), a)
	for i, s := range spans {
		dx := ""
		if i > 0 {
			dx = fmt.Sprintf(` dx="%s"`, num(spanGap))
		}
		fmt.Fprintf(&c.b, `<tspan class="%s"%s>%s</tspan>`, s[0], dx, escape(s[1]))
	}
	c.b.WriteString("</text>\n")
}

func (c *canvas) line(class string, from, to point) {
	c.add(`<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, num(from.x), num(from.y), num(to.x), num(to.y))
}

func (c *canvas) rect(class string, b box) {
	c.add(`<rect class="%s" x="%s" y="%s" width="%s" height="%s"/>`, class, num(b.x), num(b.y), num(b.w), num(b.h))
}

func (c *canvas) circle(class string, p point, r float64) {
	c.add(`<circle class="%s" cx="%s" cy="%s" r="%s"/>`, class, num(p.x), num(p.y), num(r))
}

// polygon closes a line through points.
func (c *canvas) polygon(class string, points []point) {
	var b strings.Builder
	for i, p := range points {
		b.WriteString(map[bool]string{true: "M", false: "L"}[i == 0] + num(p.x) + " " + num(p.y))
	}
	c.add(`<path class="%s" d="%sZ"/>`, class, b.String())
}

// textWidth is how wide a text is at most in the fonts that a reader may have: which one draws it is not known here.
func textWidth(s string, size float64) float64 {
	em := 0.0
	for _, r := range s {
		switch {
		case strings.ContainsRune("ijl.,:;'|!()[] ft", r):
			em += 0.36
		case strings.ContainsRune("mwMW→–%@", r):
			em += 0.92
		case unicode.IsUpper(r):
			em += 0.70
		default:
			em += 0.615
		}
	}
	return em * size
}

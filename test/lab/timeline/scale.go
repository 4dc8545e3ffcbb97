package timeline

import (
	"strconv"
	"time"
)

// scale maps a window of time to a range of x.
type scale struct {
	from, to    time.Time
	left, right float64
}

func (s scale) x(t time.Time) float64 {
	return s.left + (s.right-s.left)*float64(t.Sub(s.from))/float64(s.to.Sub(s.from))
}

// clamp is x, but not beyond the window.
func (s scale) clamp(t time.Time) float64 { return min(max(s.x(t), s.left), s.right) }

func (s scale) holds(t time.Time) bool { return !t.Before(s.from) && !t.After(s.to) }

// perInterval is how many pixels a time takes.
func (s scale) perInterval(d time.Duration) float64 {
	return (s.right - s.left) * float64(d) / float64(s.to.Sub(s.from))
}

// maxTicks bounds the labels of an axis.
const maxTicks = 12

// ticks are round times relative to zero in the window.
func (s scale) ticks(zero time.Time) []time.Time {
	step := time.Millisecond
	for i := 0; s.to.Sub(s.from)/step > maxTicks; i++ {
		step = step * 5 / 2 // 1, 2 and 5 times powers of ten
		if i%3 == 0 || i%3 == 2 {
			step = step * 4 / 5
		}
	}
	var all []time.Time
	first := zero.Add(s.from.Sub(zero).Truncate(step) - step)
	for i := range maxTicks + 3 {
		if t := first.Add(time.Duration(i) * step); s.holds(t) {
			all = append(all, t)
		}
	}
	return all
}

// axis draws ticks over a height that ends at bottom, and their labels below it.
func (s scale) axis(c *canvas, zero time.Time, top, bottom float64) {
	c.line("axis", point{s.left, bottom}, point{s.right, bottom})
	for _, t := range s.ticks(zero) {
		x := s.x(t)
		c.line("grid", point{x, top}, point{x, bottom})
		c.text(point{x, bottom + 16}, middle, [2]string{"tick", tickLabel(t.Sub(zero))})
	}
}

func tickLabel(d time.Duration) string {
	n := int(d / time.Millisecond)
	if n == 0 {
		return "0 ms"
	}
	if n < 0 {
		return "−" + thousands(-n)
	}
	return thousands(n)
}

// nice is the next round number of at least v.
func nice(v float64) float64 {
	for p := 1.0; p < 1e18; p *= 10 {
		for _, m := range []float64{1, 1.5, 2, 2.5, 3, 4, 5, 6, 8} {
			if m*p >= v {
				return m * p
			}
		}
	}
	return v
}

// rate is bytes a second for people.
func rate(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'f', -1, 64) + " MB/s"
	case v >= 1e3:
		return strconv.FormatFloat(v/1e3, 'f', -1, 64) + " kB/s"
	}
	return strconv.FormatFloat(v, 'f', -1, 64) + " B/s"
}

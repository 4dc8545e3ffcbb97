package timeline

import (
	"fmt"
	"time"
)

const areaHalf = 48.0

// throughput draws the first series upwards and the second downwards from one line, on one scale that begins at zero, and returns where they end.
func (p *panel) throughput(all []Series, top float64) float64 {
	all = all[:min(len(all), 2)]
	peak := 0.0
	for _, s := range all {
		for _, b := range s.rates() {
			peak = max(peak, b)
		}
	}
	if peak == 0 {
		return top
	}
	peak = nice(peak)
	zero := top + areaHalf + 6
	bottom := zero + areaHalf*float64(len(all)-1) + 6
	p.ground.rect("lane", box{p.left, top, p.right - p.left, bottom - top - 3})
	for i, s := range all {
		sign := map[int]float64{0: -1, 1: 1}[i]
		edge := zero + sign*areaHalf
		p.line("grid", point{p.left, edge}, point{p.right, edge})
		p.polygon(fmt.Sprintf("area%d", i), p.steps(s, zero, sign*areaHalf/peak))
		p.text(point{p.left - 12, zero + sign*areaHalf*0.45 + 4}, end, [2]string{fmt.Sprintf("name d%d", i), s.Name})
		p.text(point{p.left - 12, edge + 4}, end, [2]string{"tick", rate(peak)})
	}
	p.line("axis", point{p.left, zero}, point{p.right, zero})
	return bottom
}

// rates are in bytes a second.
func (s *Series) rates() []float64 {
	rates := make([]float64, len(s.Bytes))
	for i, b := range s.Bytes {
		rates[i] = float64(b) / s.Bucket.Seconds()
	}
	return rates
}

// steps is the outline of a series in the window: flat over each bucket, since nothing is known within it.
func (p *panel) steps(s Series, zero, perUnit float64) []point {
	var points []point
	for i, v := range s.rates() {
		from := s.Start.Add(time.Duration(i) * s.Bucket)
		to := from.Add(s.Bucket)
		if to.Before(p.from) || from.After(p.to) {
			continue
		}
		y := zero + v*perUnit
		points = append(points, point{p.clamp(from), y}, point{p.clamp(to), y})
	}
	if len(points) == 0 {
		return []point{{p.left, zero}}
	}
	first, last := points[0].x, points[len(points)-1].x
	return append([]point{{first, zero}}, append(points, point{last, zero})...)
}

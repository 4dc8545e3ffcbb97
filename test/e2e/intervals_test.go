package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
)

// movedWithin is how long after QEMU's stop an interval without a byte is counted as the move's.
const movedWithin = 2 * time.Second

// intervals are the bytes of a stream by time.
type intervals struct {
	start  time.Time
	length time.Duration
	bytes  []int64
}

// rows count how often so many intervals in a row had no byte.
type rows map[int]int

// empty finds the rows of intervals without a byte, from the first byte to the last: those in which one of the stops was, or that began shortly after it, and the others.
func (s intervals) empty(stops []lab.Stop) (moving, resting rows) {
	moving, resting = rows{}, rows{}
	last := -1 // the last interval with a byte
	for i, n := range s.bytes {
		if n == 0 {
			continue
		}
		if length := i - last - 1; last >= 0 && length > 0 {
			from, to := s.at(last+1), s.at(i)
			moved := slices.ContainsFunc(stops, func(stop lab.Stop) bool { return to.After(stop.Stopped) && from.Before(stop.Resumed.Add(movedWithin)) })
			if moved {
				moving[length]++
			} else {
				resting[length]++
			}
		}
		last = i
	}
	return moving, resting
}

func (s intervals) at(i int) time.Time { return s.start.Add(time.Duration(i) * s.length) }

// String says it in a line.
func (r rows) String() string {
	var said []string
	for _, n := range slices.Sorted(maps.Keys(r)) {
		said = append(said, fmt.Sprintf("%d in a row %d times", n, r[n]))
	}
	if len(said) == 0 {
		return "none"
	}
	return strings.Join(said, ", ")
}

func TestIntervals(t *testing.T) {
	start := time.Unix(1000, 0)
	s := intervals{start, 100 * time.Millisecond, []int64{0, 0, 5, 0, 0, 7, 1, 0, 3, 0}}
	moving, resting := s.empty([]lab.Stop{{Stopped: start.Add(-time.Minute), Resumed: start.Add(-movedWithin + 450*time.Millisecond)}})
	if moving.String() != "2 in a row 1 times" || resting.String() != "1 in a row 1 times" {
		t.Errorf("as the VM moved %s; else %s: want two in a row that began before 450 ms, one that did not, and neither the beginning nor the end", moving, resting)
	}
}

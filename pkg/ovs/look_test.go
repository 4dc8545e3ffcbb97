package ovs

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What takes long is told the next time, what takes too long for that is not told any more, and nobody looks twice at once.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var takes, looks atomic.Int64
		l := NewLook(func() int {
			seen := int(looks.Add(1))
			time.Sleep(time.Duration(takes.Load()))
			return seen
		})
		sees := func(want int, within time.Duration) {
			t.Helper()
			start := time.Now()
			got, ok := l.See()
			if took := time.Since(start); got != want || ok != (want > 0) || took != within {
				t.Errorf("saw %d (%t) after %s, want %d after %s", got, ok, took, want, within)
			}
		}
		sees(1, 0)
		takes.Store(int64(100 * time.Millisecond))
		sees(2, 100*time.Millisecond)
		takes.Store(int64(2 * time.Second))
		sees(2, lookPatience) // the third is under way
		sees(2, lookPatience)
		time.Sleep(2 * time.Second)
		takes.Store(int64(time.Hour))
		sees(3, lookPatience)
		time.Sleep(lookLife)
		sees(0, lookPatience)
		if n := looks.Load(); n != 4 {
			t.Errorf("%d looks, want 4", n)
		}
		time.Sleep(time.Hour)
	})
}

func TestLookOfNothingYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLook(func() string { time.Sleep(time.Second); return "late" })
		if seen, ok := l.See(); ok {
			t.Errorf("saw %q before anybody had looked", seen)
		}
		time.Sleep(time.Second)
		if seen, ok := l.See(); seen != "late" || !ok {
			t.Errorf("saw %q, %t", seen, ok)
		}
		time.Sleep(time.Second)
	})
}

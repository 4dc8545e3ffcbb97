package ovs

import (
	"sync"
	"time"
)

const (
	// lookPatience is how long who wants to know something waits for a look that is under way.
	lookPatience = 300 * time.Millisecond
	// lookLife is for how long the last look tells where the one under way does not yet: longer than from one scrape to the next.
	lookLife = 2 * time.Minute
)

// Look is how daemons are asked for who must not wait for them, a scrape: a daemon that is busy, or hangs, would keep all that has nothing to do with it too. What takes longer than lookPatience goes on, and is told
// the next time. Safe for concurrent use; who comes while a look is under way shares it.
type Look[T any] struct {
	take func() T

	mu sync.Mutex
	// ended is closed when the look under way has ended; nil if none is.
	ended chan struct{}
	// last is what the last one saw; at is when that was, zero if there was none.
	last T
	at   time.Time
}

// NewLook returns a Look by take, which must end by itself: it is called again only then.
func NewLook[T any](take func() T) *Look[T] { return &Look[T]{take: take} }

// See looks, and returns what was seen: now, or where that takes long the last time. ok is false where there is neither.
func (l *Look[T]) See() (seen T, ok bool) {
	select {
	case <-l.begin():
	case <-time.After(lookPatience):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() || time.Since(l.at) > lookLife {
		return seen, false
	}
	return l.last, true
}

// begin begins a look unless one is under way, and returns what is closed when it has ended.
func (l *Look[T]) begin() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		return l.ended
	}
	ended := make(chan struct{})
	l.ended = ended
	go func() {
		seen := l.take()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.last, l.at, l.ended = seen, time.Now(), nil
		close(ended)
	}()
	return ended
}

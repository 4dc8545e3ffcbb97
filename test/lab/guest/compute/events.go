package compute

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// journal keeps all events of a launcher's life, which are few, for whoever asks later. Safe for concurrent use.
type journal struct {
	mu     sync.Mutex
	events []guest.Event
	more   chan struct{} // closed and replaced at every event
	closed bool
}

func newJournal() *journal { return &journal{more: make(chan struct{})} }

// add completes the event with its number and, unless it has one, the time.
func (j *journal) add(e guest.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Seq = len(j.events) + 1
	j.events = append(j.events, e)
	close(j.more)
	j.more = make(chan struct{})
}

// close ends the journal for its readers when they have read all.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.closed = true
		close(j.more)
	}
}

// next returns the events after the one with that number, as soon as there are any; io.EOF when there will be none.
func (j *journal) next(ctx context.Context, after int) ([]guest.Event, error) {
	for {
		j.mu.Lock()
		events, more, closed := j.events, j.more, j.closed
		j.mu.Unlock()
		if after < len(events) {
			return events[max(0, after):], nil
		}
		if closed {
			return nil, io.EOF
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// saw reports whether there was an event that match says true of.
func (j *journal) saw(match func(guest.Event) bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if match(e) {
			return true
		}
	}
	return false
}

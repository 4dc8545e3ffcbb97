package ovn

import (
	"sync"
	"time"
)

// askPatience is how long the client may take to say whether it is connected: a health probe, which asks for both databases, has a second.
const askPatience = 300 * time.Millisecond

// asking is how the client is asked whether it is connected. It keeps the answer to itself while it tries to connect, which a server that hangs draws out to connectTimeout, and while it waits for what such a
// server was sent before: who asks then has no database. Safe for concurrent use; the zero value is ready.
type asking struct {
	mu sync.Mutex
	// open is the question that is not answered yet, nil if there is none.
	open *question
}

// question is one that was asked.
type question struct {
	asked    time.Time
	answered chan struct{}
	// connected is the answer, once answered is closed.
	connected bool
}

// connected asks, and returns false where there is no answer within askPatience of when it was asked first: only one who asks waits for that long.
func (a *asking) connected(ask func() bool) bool {
	q := a.ask(ask)
	patience := time.NewTimer(time.Until(q.asked.Add(askPatience)))
	defer patience.Stop()
	select {
	case <-q.answered:
	case <-patience.C:
	}
	select { // on a busy machine both may have come by now
	case <-q.answered:
		return q.connected
	default:
		return false
	}
}

// ask puts the question, unless it was put before and is not answered yet.
func (a *asking) ask(ask func() bool) *question {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open != nil {
		return a.open
	}
	q := &question{asked: time.Now(), answered: make(chan struct{})}
	a.open = q
	go func() {
		q.connected = ask()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.open = nil
		close(q.answered)
	}()
	return q
}

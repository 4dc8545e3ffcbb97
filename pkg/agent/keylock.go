package agent

import (
	"context"
	"sync"
	"time"
)

// keyLock is one lock per key, which exists while somebody holds it or waits for it. The zero value is ready.
type keyLock struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{}
	users int
}

// lock returns when the key is the caller's, or with ctx's error and how long it was waited for.
func (k *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	start := time.Now()
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; k.leave(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, waited("its turn", start, ctx.Err())
	}
}

func (k *keyLock) leave(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}

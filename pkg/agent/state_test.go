package agent

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestReadiness(t *testing.T) {
	r := newReadiness(compAPI, compOVS)
	if err := r.err(); err == nil || err.Error() != "node is not ready for pods: API: starting; Open vSwitch: starting" {
		t.Errorf("error at the start: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.wait(ctx); !errors.Is(err, errNotReady) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting in vain: %v", err)
	}
	done := make(chan error)
	go func() { done <- r.wait(t.Context()) }()
	if !r.set(compAPI, "") || r.set(compAPI, "") {
		t.Error("what is news is not told from what is not")
	}
	r.set(compOVS, "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range 2 { // it can go and come
		r.set(compOVS, "gone")
		if err := r.wait(ctx); !errors.Is(err, errNotReady) {
			t.Errorf("after a component went away: %v", err)
		}
		r.set(compOVS, "")
		if err := r.wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestKeyLock(t *testing.T) {
	var k keyLock
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock of a held key: %v", err)
	}
	got := make(chan struct{})
	go func() {
		if again, err := k.lock(t.Context(), "a"); err == nil {
			again()
			close(got)
		}
	}()
	unlock()
	select {
	case <-got:
	case <-time.After(time.Minute):
		t.Fatal("the lock was not passed on")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.locks) != 0 {
		t.Errorf("%d locks are left", len(k.locks))
	}
}

package ovn

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestConnectedAnswers: whoever asks is told no in bounded time while the client says nothing, one question is under way at most, and the answer is that of the client again when it has one.
func TestConnectedAnswers(t *testing.T) {
	var a asking
	if !a.connected(func() bool { return true }) {
		t.Error("a client that is connected is not")
	}
	if a.connected(func() bool { return false }) {
		t.Error("a client that is not connected is")
	}
	silent, asked := make(chan struct{}), atomic.Int64{}
	silence := func() bool {
		asked.Add(1)
		<-silent
		return true
	}
	for range 20 { // without a bound the first would wait for ever
		if a.connected(silence) {
			t.Fatal("a client that says nothing is connected")
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("a client that says nothing was asked %d times at once", n)
	}
	close(silent)
	for end := time.Now().Add(time.Minute); !a.connected(func() bool { return true }); {
		if time.Now().After(end) {
			t.Fatal("a client that answers again is not connected")
		}
	}
}

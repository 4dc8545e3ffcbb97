package suite

import (
	"context"
	"testing"
	"time"
)

func TestDownWhenStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	down, exited := make(chan struct{}), make(chan int, 1)
	ended := downWhenStopped(ctx, func() int { close(down); return 0 }, func(code int) { exited <- code })
	defer ended()
	stop()
	select {
	case code := <-exited:
		if code != interrupted {
			t.Errorf("ended with status %d, want %d", code, interrupted)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the process was not ended when its context was")
	}
	select {
	case <-down:
	default:
		t.Error("the cluster was not taken down before the end")
	}
}

// Tests that have ended leave the cluster to whoever ran them, also when their context ends at the same moment.
func TestEndedTestsKeepTheCluster(t *testing.T) {
	for range 100 {
		ctx, stop := context.WithCancel(t.Context())
		ended := downWhenStopped(ctx, func() int { t.Error("taken down"); return 0 }, func(int) { t.Error("ended") })
		ended()
		stop()
	}
}

// Package suite is what test binaries have in common that make clusters: Ctrl-C leaves none.
package suite

import (
	"context"
	"fmt"
	"os"
)

const (
	// interrupted is the status of a process that Ctrl-C ended.
	interrupted  = 130
	interruption = "interrupted: what the tests have made is removed now"
)

// DownWhenStopped takes the cluster down and ends the process when ctx ends: tests cannot be told to stop, their cluster can. What it returns says that the tests
// have ended; it is to be deferred after that which cancels ctx, so that it comes before.
func DownWhenStopped(ctx context.Context, down func() int) (ended func()) {
	return downWhenStopped(ctx, down, os.Exit) //nolint:forbidigo // it is for TestMain
}

func downWhenStopped(ctx context.Context, down func() int, exit func(int)) (ended func()) {
	finished := make(chan struct{})
	go func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		select {
		case <-finished: // both at once: the tests have ended
		default:
			fmt.Fprintln(os.Stderr, interruption)
			down()
			exit(interrupted)
		}
	}()
	return func() { close(finished) }
}

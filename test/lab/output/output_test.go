package output

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// What several write is all there, line by line, and can be read meanwhile.
func TestBuffer(t *testing.T) {
	var b Buffer
	var all sync.WaitGroup
	const writers, lines = 4, 100
	for range writers {
		all.Go(func() {
			for range lines {
				_, _ = fmt.Fprintln(&b, "line")
				_ = b.String()
			}
		})
	}
	all.Wait()
	if got, want := b.String(), strings.Repeat("line\n", writers*lines); got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

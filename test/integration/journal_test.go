package integration

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"
)

// journal has the northbound transactions of the controllers of a test, as they log them at level debug.
type journal struct {
	mu    sync.Mutex
	lines []string
	last  time.Time
}

func (j *journal) since(n int) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines[n:])
}

// quiet waits until the controller has written nothing for a while, as it does when it has finished to start, and returns how many transactions there have been.
func (j *journal) quiet(t *testing.T) (transactions int) {
	t.Helper()
	const silence = 6 * time.Second // beside other tests it may wait for the processor meanwhile
	eventually(t, func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		if d := time.Since(j.last); d < silence {
			return fmt.Errorf("the controller does not stop writing, %s ago it wrote %s", d, j.lines[len(j.lines)-1])
		}
		transactions = len(j.lines)
		return nil
	})
	return transactions
}

// journalHandler writes what is logged into a journal, or lets it be logged.
type journalHandler struct {
	slog.Handler
	journal *journal
}

func (h *journalHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "northbound transaction" {
		h.journal.mu.Lock()
		defer h.journal.mu.Unlock()
		h.journal.last = r.Time
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "operations" {
				h.journal.lines = append(h.journal.lines, fmt.Sprint(a.Value.Resolve()))
			}
			return true
		})
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{Handler: h.Handler.WithAttrs(attrs), journal: h.journal}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{Handler: h.Handler.WithGroup(name), journal: h.journal}
}

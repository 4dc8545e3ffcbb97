package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// progress is a slog.Handler for a person who waits: the seconds since the start, the message, and its attributes.
type progress struct {
	mu    *sync.Mutex
	out   io.Writer
	level slog.Level
	start time.Time
	attrs string
}

func newProgress(out io.Writer, level slog.Level) *progress {
	return &progress{mu: &sync.Mutex{}, out: out, level: level, start: time.Now()}
}

// Enabled implements slog.Handler.
func (p *progress) Enabled(_ context.Context, level slog.Level) bool { return level >= p.level }

// Handle implements slog.Handler.
func (p *progress) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%6.1fs  ", r.Time.Sub(p.start).Seconds())
	if r.Level != slog.LevelInfo {
		fmt.Fprintf(&b, "%s: ", strings.ToLower(r.Level.String()))
	}
	b.WriteString(r.Message)
	b.WriteString(p.attrs)
	r.Attrs(func(a slog.Attr) bool {
		if s := format(a); s != "" {
			b.WriteString(s)
		}
		return true
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := fmt.Fprintln(p.out, b.String())
	return err
}

// WithAttrs implements slog.Handler.
func (p *progress) WithAttrs(attrs []slog.Attr) slog.Handler {
	q := *p
	for _, a := range attrs {
		q.attrs += format(a)
	}
	return &q
}

// WithGroup implements slog.Handler. Groups are not shown.
func (p *progress) WithGroup(string) slog.Handler { return p }

// format leaves out errors that are nil.
func format(a slog.Attr) string {
	if a.Value.Kind() == slog.KindAny && a.Value.Any() == nil {
		return ""
	}
	return fmt.Sprintf("  %s=%v", a.Key, a.Value)
}

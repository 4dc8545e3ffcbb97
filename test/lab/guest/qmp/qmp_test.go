package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// fakeQEMU answers commands by name; "block" is never answered.
func fakeQEMU(t *testing.T, answers map[string]string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close(); <-done })
	go func() {
		defer close(done)
		if _, err := fmt.Fprintln(theirs, `{"QMP": {"version": {}, "capabilities": []}}`); err != nil {
			return
		}
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c command
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client sent %q: %v", lines.Text(), err)
				return
			}
			answer, ok := answers[c.Execute]
			if c.Execute == "quit" {
				_ = theirs.Close()
				return
			}
			if !ok {
				answer = `{"return": {}, "id": %d}`
			}
			if c.Execute != "block" {
				if _, err := fmt.Fprintf(theirs, answer+"\n", c.ID); err != nil {
					return
				}
			}
		}
	}()
	return ours
}

func TestExecute(t *testing.T) {
	var events []Event
	c, err := New(t.Context(), fakeQEMU(t, map[string]string{
		"query-status": `{"event": "STOP", "timestamp": {"seconds": 1700000000, "microseconds": 123456}}` + "\n" + `{"return": {"status": "paused"}, "id": %d}`,
		"cont":         `{"id": %d, "error": {"class": "GenericError", "desc": "not now"}}`,
	}), func(e Event) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("query-status: %+v, %v: want paused", status, err)
	}
	if want := time.Unix(1700000000, 123456000); len(events) != 1 || events[0].Name != "STOP" || !events[0].Time.Equal(want) {
		t.Errorf("events %+v, want STOP at %s before the answer", events, want)
	}
	var refusal *Error
	if err := c.Execute(t.Context(), "cont", nil, nil); !errors.As(err, &refusal) || refusal.Command != "cont" || refusal.Desc != "not now" {
		t.Errorf("cont: %v, want QEMU's refusal", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "block", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that is not answered: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := c.Execute(t.Context(), "quit", nil, nil); !errors.Is(err, ErrGone) {
		t.Errorf("a QEMU that ends: %v, want %v", err, ErrGone)
	}
	<-c.Done()
}

func TestNewWithoutGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, ours, func(Event) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a QEMU that says nothing: %v, want %v", err, context.DeadlineExceeded)
	}
}

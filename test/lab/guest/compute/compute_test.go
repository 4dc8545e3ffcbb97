package compute

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func TestStates(t *testing.T) {
	migration := func(s guest.MigrationStatus) guest.Event {
		return guest.Event{Type: guest.MigrationChanged, Status: s}
	}
	stop, resume := guest.Event{Type: guest.Stopped}, guest.Event{Type: guest.Resumed}
	for _, tt := range []struct {
		name   string
		from   guest.State
		in     *guest.Incoming
		events []guest.Event
		want   guest.State
	}{
		{"paused", guest.Running, nil, []guest.Event{stop}, guest.Paused},
		{"paused and resumed", guest.Running, nil, []guest.Event{stop, resume}, guest.Running},
		{"sent", guest.Running, nil, []guest.Event{migration(guest.Setup), migration(guest.Active), stop, migration(guest.Completed)}, guest.Migrated},
		{"sent while paused", guest.Paused, nil, []guest.Event{migration(guest.Active), migration(guest.Completed)}, guest.Migrated},
		{"sent by post-copy", guest.Running, nil, []guest.Event{migration(guest.PostCopyActive), stop, migration(guest.Completed)}, guest.Migrated},
		{"taken back", guest.Migrated, nil, []guest.Event{resume}, guest.Running},
		{"failed when stopped", guest.Running, nil, []guest.Event{stop, migration(guest.Failed), resume}, guest.Running},
		{"cancelled", guest.Running, nil, []guest.Event{migration(guest.Active), migration(guest.Cancelled)}, guest.Running},
		{"received", guest.Receiving, &guest.Incoming{}, []guest.Event{migration(guest.Active), resume, migration(guest.Completed)}, guest.Running},
		{"received by post-copy", guest.Receiving, &guest.Incoming{PostCopy: true}, []guest.Event{migration(guest.PostCopyActive), resume}, guest.Running},
		{"received and held", guest.Receiving, &guest.Incoming{HoldResume: true}, []guest.Event{migration(guest.Completed)}, guest.Paused},
		{"received, then sent on", guest.Running, &guest.Incoming{}, []guest.Event{migration(guest.Active), stop, migration(guest.Completed)}, guest.Migrated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.from
			for _, e := range tt.events {
				s = after(s, e, tt.in)
			}
			if s != tt.want {
				t.Errorf("state %s after %+v, want %s", s, tt.events, tt.want)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	crash := errors.New("signal: killed")
	for _, tt := range []struct {
		name     string
		leaving  bool
		incoming *guest.Incoming
		saw      []guest.EventType
		exit     error
		want     int
	}{
		{"asked to leave", true, nil, nil, crash, 0},
		{"switched off", false, nil, []guest.EventType{guest.Off}, nil, 0},
		{"crashed", false, nil, nil, crash, 1},
		{"crashed while switching off", false, nil, []guest.EventType{guest.Off}, crash, 1},
		{"target that never ran succeeds", false, &guest.Incoming{}, nil, crash, 0},
		{"target that never ran fails", false, &guest.Incoming{FailStatus: 1}, nil, crash, 1},
		{"target killed late", false, &guest.Incoming{KillOn: guest.Resumed}, []guest.EventType{guest.Resumed}, crash, 0},
		{"crashed after it had come", false, &guest.Incoming{}, []guest.EventType{guest.Resumed}, crash, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &launcher{journal: newJournal(), leaving: tt.leaving, incoming: tt.incoming}
			for _, e := range tt.saw {
				l.journal.add(guest.Event{Type: e})
			}
			if got, why := l.verdict(&qemu{exit: tt.exit}); got != tt.want {
				t.Errorf("status %d (%s), want %d", got, why, tt.want)
			}
		})
	}
}

func TestJournal(t *testing.T) {
	j := newJournal()
	j.add(guest.Event{Type: guest.QEMUStarted})
	got := make(chan []guest.Event)
	go func() {
		events, err := j.next(t.Context(), 1)
		if err != nil {
			t.Errorf("wait for the second event: %v", err)
		}
		got <- events
	}()
	j.add(guest.Event{Type: guest.Stopped})
	if events := <-got; len(events) != 1 || events[0].Seq != 2 || events[0].Type != guest.Stopped || events[0].Time.IsZero() {
		t.Errorf("after the first event came %+v, want the second, with a time", events)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.next(ctx, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with an ended context: %v", err)
	}
	j.close()
	j.close()
	j.add(guest.Event{Type: guest.Off})
	if events, err := j.next(t.Context(), 0); err != nil || len(events) != 2 {
		t.Errorf("after the end: %d events, %v: want the two from before it", len(events), err)
	}
	if _, err := j.next(t.Context(), 2); !errors.Is(err, io.EOF) {
		t.Errorf("after all events: %v, want %v", err, io.EOF)
	}
}

func TestConsole(t *testing.T) {
	c := newConsole(nil)
	if err := c.write([]byte("x")); !errors.Is(err, errNoConsole) {
		t.Errorf("typing without a guest: %v, want %v", err, errNoConsole)
	}
	line, guestEnd := net.Pipe()
	go c.serve(line)
	send := func(s string) {
		t.Helper()
		if _, err := guestEnd.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	send("booting")
	viewer, attached := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); c.attach(attached) }()
	buf := make([]byte, 64)
	if n, err := viewer.Read(buf); err != nil || string(buf[:n]) != "booting" {
		t.Errorf("a viewer that comes late sees %q, %v: want what was printed before", buf[:n], err)
	}
	if _, err := viewer.Write([]byte("ls\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := guestEnd.Read(buf); err != nil || string(buf[:n]) != "ls\n" {
		t.Errorf("the guest reads %q, %v: want what the viewer typed", buf[:n], err)
	}
	c.close()
	<-done
	if err := guestEnd.Close(); err != nil {
		t.Error(err)
	}
}

// TestQEMUThatDoesNotStart has what it says in the error.
func TestQEMUThatDoesNotStart(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	l := &launcher{config: Config{Dir: t.TempDir(), QEMU: sh, Log: testLog(t)}, journal: newJournal(), console: newConsole(nil)}
	_, err = l.startQEMU(t.Context(), []string{"-c", "echo cannot open tap0 >&2; exit 3"})
	if err == nil || err.Error() != "start QEMU: exit status 3: cannot open tap0" {
		t.Errorf("error %v, want QEMU's last word", err)
	}
}

package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newClient serves on this machine.
func newClient(t *testing.T) *Client {
	t.Helper()
	srv := httptest.NewServer(NewServer(slog.New(slog.NewTextHandler(t.Output(), nil))).Handler())
	t.Cleanup(srv.Close)
	var d net.Dialer
	c := NewClient(srv.Listener.Addr().String(), d.DialContext)
	t.Cleanup(c.Close)
	return c
}

func TestRun(t *testing.T) {
	c := newClient(t)
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := c.Run(t.Context(), Command{Args: []string{"sh", "-c", "cat; echo $X"}, Env: []string{"X=y"}, Stdin: []byte("in ")})
	if err != nil || out != "in y\n" {
		t.Errorf("it printed %q, %v: want its input and its variable", out, err)
	}
	res, err := c.Try(t.Context(), Command{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}})
	if err != nil || res.Status != 3 || string(res.Stdout) != "out\n" || string(res.Stderr) != "err\n" {
		t.Errorf("result %+v, %v", res, err)
	}
	_, err = c.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo why >&2; kill -9 $$"}})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Result.Status != 128+9 || !strings.Contains(err.Error(), "why") {
		t.Errorf("a command that was killed: %v, want status 137 and what it said", err)
	}
	for what, cmd := range map[string]Command{"nothing": {}, "what is not there": {Args: []string{"/no/such/program"}}, "no namespace": {Args: []string{"true"}, Netns: "none-such"}} {
		if _, err := c.Run(t.Context(), cmd); err == nil || errors.As(err, &exit) {
			t.Errorf("running %s: %v, want an error that is no exit status", what, err)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := newClient(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.Run(ctx, Command{Args: []string{"sleep", "600"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run = %v, want deadline exceeded", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestStart(t *testing.T) {
	c := newClient(t)
	log := filepath.Join(t.TempDir(), "log")
	pid, err := c.Start(t.Context(), Command{Args: []string{"sh", "-c", "trap 'echo told; exit' TERM; echo up; while :; do sleep 0.05; done"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			b, err := c.ReadFile(t.Context(), log)
			if err == nil && string(b) == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("its log has %q, %v: want %q", b, err, want)
			}
		}
	}
	says("up\n")
	if err := c.Signal(t.Context(), pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	says("up\ntold\n")
	if err := c.Signal(t.Context(), 1<<30, syscall.SIGTERM); err != nil {
		t.Errorf("signal to what has ended: %v", err)
	}
}

func TestRestart(t *testing.T) {
	c := newClient(t)
	log := filepath.Join(t.TempDir(), "log")
	id, err := c.Start(t.Context(), Command{Args: []string{"sh", "-c", "echo up"}, Log: log, Restart: true})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := c.ReadFile(t.Context(), log)
		if err == nil && strings.HasPrefix(string(b), "up\nup\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its log has %q, %v: want two starts and more", b, err)
		}
	}
	if err := c.Signal(t.Context(), id, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	before, err := c.ReadFile(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(restartAfter + restartAfter/2)
	if after, err := c.ReadFile(t.Context(), log); err != nil || len(after) > len(before)+len("up\n") {
		t.Errorf("its log has become %q of %q, %v: want no new start after it was told to end", after, before, err)
	}
}

func TestFiles(t *testing.T) {
	c := newClient(t)
	path := filepath.Join(t.TempDir(), "new", "file")
	content := bytes.Repeat([]byte{0, 1, 0xff}, 1<<20)
	if err := c.WriteFile(t.Context(), path, content, 0o750); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadFile(t.Context(), path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back, %v: want the %d that were written", len(got), err, len(content))
	}
	if _, err := c.ReadFile(t.Context(), path+"x"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestDialIn(t *testing.T) {
	c := newClient(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			_, _ = io.WriteString(conn, "hello ") // speaks first
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	dial := c.DialIn("")
	conn, err := dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "you"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len("hello you"))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello you" {
		t.Errorf("it said %q, %v", b, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t.Context(), "tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a dial to nobody: %v, want it refused", err)
	}
}

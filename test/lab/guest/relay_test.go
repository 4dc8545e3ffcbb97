package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRelay carries bytes between directories whose paths are longer than a socket's may be.
func TestRelay(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	source, target := filepath.Join(long, "source"), filepath.Join(long, "target")
	if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(target, 0o755)); err != nil {
		t.Fatal(err)
	}
	incoming, err := listenUnix(t.Context(), target, IncomingSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = incoming.Close() }()
	r, err := NewRelay(t.Context(), source, target)
	if err != nil {
		t.Fatal(err)
	}
	from, err := dialUnix(t.Context(), source, OutgoingSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := incoming.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	wantCarried(t, from, to, "memory")
	wantCarried(t, to, from, "pages that are asked for")
	if got := r.Bytes(); got != int64(len("memory")) {
		t.Errorf("%d bytes went to the target, want %d", got, len("memory"))
	}
	r.Cut()
	for name, conn := range map[string]net.Conn{"source": from, "target": to} {
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("after the cut the %s reads: %v, want %v", name, err, io.EOF)
		}
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := dialUnix(t.Context(), source, OutgoingSocket); err == nil {
		t.Error("a closed relay still accepts")
	}
}

func wantCarried(t *testing.T, from, to net.Conn, what string) {
	t.Helper()
	if _, err := from.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != what {
		t.Errorf("%q arrived as %q, %v", what, got, err)
	}
}

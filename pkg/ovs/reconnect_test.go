package ovs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// line is a connection to the database that a test can cut and mend.
type line struct {
	socket, target string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
}

func newLine(t *testing.T, endpoint string) *line {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwline")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &line{socket: filepath.Join(dir, "db.sock"), target: strings.TrimPrefix(endpoint, "unix:")}
	l.mend(t)
	t.Cleanup(l.cut)
	return l
}

func (l *line) mend(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listener = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.forward(conn)
		}
	}()
}

func (l *line) forward(conn net.Conn) {
	server, err := net.Dial("unix", l.target)
	if err != nil {
		_ = conn.Close()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, conn, server)
	go func() { _, _ = io.Copy(server, conn) }()
	go func() { _, _ = io.Copy(conn, server) }()
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.listener.Close()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func TestReconnect(t *testing.T) {
	host := ovntest.Host(t, ovntest.Central(t), "one")
	line := newLine(t, host.Endpoint)
	direct := dial(t, host)
	c, err := Connect(t.Context(), Config{Endpoint: "unix:" + line.socket, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	addLink(t, host, "gw1")
	if err := c.EnsurePort(t.Context(), podPort("gw1", "c1")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // the other connection learns of it by itself
		if _, err := direct.Port(t.Context(), "gw1"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	configChanged := make(chan struct{}, 100)
	c.OnConfigChange(func() { configChanged <- struct{}{} })
	installed := make(chan error, 1)
	go func() { installed <- c.WaitInstalled(t.Context(), "gw1") }()

	line.cut()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.EnsurePort(ctx, podPort("gw2", "c2")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a transaction without a connection: %v, want ErrUnreachable", err)
	}
	if err := c.Ping(ctx); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Ping without a connection: %v, want ErrUnreachable", err)
	}
	setInstalled(t, direct, "gw1") // ovn-controller goes on meanwhile
	if _, err := direct.EnsureChassis(t.Context(), chassisOne); err != nil {
		t.Fatal(err)
	}
	line.mend(t)
	select {
	case err := <-installed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("WaitInstalled did not learn what happened while the connection was cut")
	}
	select {
	case <-configChanged:
	case <-time.After(time.Minute):
		t.Error("OnConfigChange did not learn what happened while the connection was cut")
	}
	if err := c.EnsurePort(t.Context(), podPort("gw2", "c2")); err != nil {
		t.Errorf("a transaction after the reconnect: %v", err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("Ping after the reconnect: %v", err)
	}
}

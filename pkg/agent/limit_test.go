package agent

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Whoever holds connections to the health server open keeps neither the node's own probes out nor those of another address, and gets its places back.
func TestConnectionsAreLimited(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	served := limit(l, log)
	srv := healthServer(newReadiness(), prometheus.NewRegistry(), log)
	go func() { _ = srv.Serve(served) }()
	t.Cleanup(func() { _ = srv.Close() })

	var held []net.Conn
	for range connectionsOfOne {
		conn := dialFrom(t, "127.0.0.2", l.Addr())
		probe(t, conn, true)
		held = append(held, conn)
	}
	probe(t, dialFrom(t, "127.0.0.2", l.Addr()), false)
	probe(t, dialFrom(t, "127.0.0.3", l.Addr()), true)
	for range connectionsOfOne + 1 { // the kubelet's
		probe(t, dialFrom(t, "127.0.0.1", l.Addr()), true)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	eventually(t, "places of connections that were closed", func() error {
		served.mu.Lock()
		defer served.mu.Unlock()
		if served.all != 1 || len(served.open) != 1 {
			return fmt.Errorf("%d are counted, of %v; want that of 127.0.0.3", served.all, served.open)
		}
		return nil
	})
	probe(t, dialFrom(t, "127.0.0.2", l.Addr()), true)
}

func TestConnectionsAreLimitedInAll(t *testing.T) {
	l := limit(nil, nil)
	addr := address(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)})
	for i := range connectionsOfAll {
		if !l.take(addr) {
			t.Fatalf("number %d was refused", i)
		}
		if i%connectionsOfOne == connectionsOfOne-1 {
			addr = addr.Next()
		}
	}
	if l.take(addr) {
		t.Errorf("more than %d were taken", connectionsOfAll)
	}
}

func dialFrom(t *testing.T, from string, to net.Addr) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(t.Context(), "tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// probe asks for /healthz and keeps the connection open.
func probe(t *testing.T, conn net.Conn, want bool) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(healthTimeout)); err != nil {
		t.Fatal(err)
	}
	_, werr := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := make([]byte, len("HTTP/1.1 200"))
	_, err := io.ReadFull(conn, answer)
	if got := err == nil && string(answer) == "HTTP/1.1 200"; got != want {
		t.Errorf("probe from %s: %q (%v, %v), answered is %v, want %v", conn.LocalAddr(), answer, werr, err, got, want)
	}
}

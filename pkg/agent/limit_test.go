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
		if err := probe(conn); err != nil {
			t.Error(err)
		}
		held = append(held, conn)
	}
	if err := probe(dialFrom(t, "127.0.0.2", l.Addr())); err == nil {
		t.Errorf("more than %d connections of one address were served", connectionsOfOne)
	}
	if err := probe(dialFrom(t, "127.0.0.3", l.Addr())); err != nil {
		t.Errorf("another address: %v", err)
	}
	for range connectionsOfOne + 1 { // the kubelet's
		if err := probe(dialFrom(t, "127.0.0.1", l.Addr())); err != nil {
			t.Errorf("the node's own: %v", err)
		}
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
	if err := probe(dialFrom(t, "127.0.0.2", l.Addr())); err != nil {
		t.Errorf("after its connections were closed: %v", err)
	}
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
func probe(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(healthTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	const want = "HTTP/1.1 200"
	answer := make([]byte, len(want))
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != want {
		return fmt.Errorf("probe from %s: %q (%w), want %q", conn.LocalAddr(), answer, err, want)
	}
	return nil
}

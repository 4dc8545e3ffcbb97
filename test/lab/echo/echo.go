// Package echo answers clients with the address that it sees them under, over TCP, UDP and HTTP, and asks many such servers at once, or over and over.
package echo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// idleTimeout ends connections that nobody uses.
const idleTimeout = 5 * time.Minute

// Config are the addresses to serve on, "host:port" or ":port"; an empty one is not served.
type Config struct {
	TCP, UDP, HTTP string
	// Desk is where others may let this process ask questions: see NewDesk.
	Desk string
	// Name is the server's name, part of its HTTP answers.
	Name string
}

// Serve serves until ctx ends.
//
// TCP and UDP: each line or datagram is answered with "ADDRESS TEXT\n", the client's address without port and what it sent, "name" with "ADDRESS NAME\n". HTTP: any path is
// answered with that too.
func Serve(ctx context.Context, c Config) error {
	g, ctx := errgroup.WithContext(ctx)
	var lc net.ListenConfig
	if c.TCP != "" {
		l, err := lc.Listen(ctx, "tcp", c.TCP)
		if err != nil {
			return fmt.Errorf("serve TCP: %w", err)
		}
		g.Go(func() error { return serveTCP(ctx, l, c.Name) })
	}
	if c.UDP != "" {
		pc, err := lc.ListenPacket(ctx, "udp", c.UDP)
		if err != nil {
			return fmt.Errorf("serve UDP: %w", err)
		}
		g.Go(func() error { return serveUDP(ctx, pc, c.Name) })
	}
	if c.HTTP != "" {
		l, err := lc.Listen(ctx, "tcp", c.HTTP)
		if err != nil {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		g.Go(func() error { return serveHTTP(ctx, l, c.Name) })
	}
	if c.Desk != "" {
		l, err := lc.Listen(ctx, "tcp", c.Desk)
		if err != nil {
			return fmt.Errorf("serve questions: %w", err)
		}
		g.Go(func() error { return serveDesk(ctx, l) })
	}
	return g.Wait()
}

func client(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// AskName is what a client sends to be told the server's name.
const AskName = "name"

// reply is what is answered to a client that sent text.
func reply(from, text, name string) string {
	if text == AskName {
		text = name
	}
	return client(from) + " " + text + "\n"
}

func serveTCP(ctx context.Context, l net.Listener, name string) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept TCP connections: %w", err)
		}
		open.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(idleTimeout))
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if _, err := io.WriteString(conn, reply(conn.RemoteAddr().String(), lines.Text(), name)); err != nil {
					return
				}
				_ = conn.SetDeadline(time.Now().Add(idleTimeout))
			}
		})
	}
}

func serveUDP(ctx context.Context, pc net.PacketConn, name string) error {
	defer context.AfterFunc(ctx, func() { _ = pc.Close() })()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive datagrams: %w", err)
		}
		text := buf[:n]
		if n > 0 && text[n-1] == '\n' {
			text = text[:n-1]
		}
		// A client that is gone makes this fail; the next one does not.
		_, _ = pc.WriteTo([]byte(reply(from.String(), string(text), name)), from)
	}
}

func serveHTTP(ctx context.Context, l net.Listener, name string) error {
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = fmt.Fprintf(w, "%s %s\n", client(r.RemoteAddr), name)
		}),
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/pki"
)

const (
	// dialTimeout bounds a connection with its handshake and hello, messageTimeout a message with its answer.
	dialTimeout    = 5 * time.Second
	messageTimeout = 2 * time.Second
	// aliveEvery is how often a connection that says nothing else says that it is there.
	aliveEvery = 10 * time.Second
)

// ErrRefused says that the other side does not take what was said.
var ErrRefused = errors.New("the other node's agent refuses")

// Target is whom to connect to.
type Target struct {
	// Address is HOST:PORT, Node the name in the certificate that must be shown there.
	Address, Node string
}

// Conn is a connection to a target's agent, about one migration. It is safe for concurrent use.
type Conn struct {
	mu   sync.Mutex
	conn *tls.Conn
}

// Dial connects, and returns when the target's agent has agreed to speak of the migration. The error wraps ErrRefused if it has not.
func Dial(ctx context.Context, to Target, files *pki.Files, m Migration) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{KeepAlive: aliveEvery}, Config: files.PeerTLS(to.Node, time.Now)}
	conn, err := dialer.DialContext(ctx, "tcp", to.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent of node %s at %s: %w", to.Node, to.Address, err)
	}
	c := &Conn{conn: conn.(*tls.Conn)}
	if _, err := c.ask(ctx, hello{Version: Version, Migration: m}); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("agent of node %s at %s: %w", to.Node, to.Address, err)
	}
	return c, nil
}

// Send says something and waits for the answer. The error wraps ErrRefused if the target's agent does not act on it; after any other the connection is of no use.
func (c *Conn) Send(ctx context.Context, m Message) (Reply, error) {
	return c.ask(ctx, m)
}

func (c *Conn) ask(ctx context.Context, v any) (Reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(messageTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return Reply{}, fmt.Errorf("set deadline: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Now()) })
	defer stop()
	if err := write(c.conn, v); err != nil {
		_ = c.conn.NetConn().Close() // what TLS would take its leave with were the rest of what was sent in part, to the other side
		return Reply{}, err
	}
	var a answer
	if err := read(c.conn, &a); err != nil {
		return Reply{}, err
	}
	if a.Error != "" {
		return Reply{}, fmt.Errorf("%w: %q", ErrRefused, a.Error[:min(len(a.Error), maxText)])
	}
	return a.Reply, nil
}

// Keep says now and then that the connection is there, and returns with the error that ends it, or ctx's. A connection must be kept, or the target's agent closes it.
func (c *Conn) Keep(ctx context.Context) error {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if _, err := c.Send(ctx, Message{Kind: Alive}); err != nil {
			return err
		}
	}
}

// Close ends the connection. What waits for an answer fails.
func (c *Conn) Close() error {
	if err := c.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

package central

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Ledger counts what the controllers ask of the northbound database. It stands between: what the controllers send is passed on at once, and read afterwards.
type Ledger struct {
	// About says of which tables operations are counted apart.
	About func(table string) bool

	mu     sync.Mutex
	totals Totals
}

// Totals are what was asked for so far.
type Totals struct {
	// Transactions are those that could change something, Bytes the length of what they were asked with; Reads are those that could not.
	Transactions, Bytes, Reads int
	// Operations that change something, and those of them that are About certain tables.
	Operations, About int
}

// Since is what has been asked for since then.
func (t Totals) Since(before Totals) Totals {
	return Totals{t.Transactions - before.Transactions, t.Bytes - before.Bytes, t.Reads - before.Reads, t.Operations - before.Operations, t.About - before.About}
}

// Read returns what was asked for so far.
func (l *Ledger) Read() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.totals
}

// Serve accepts connections at a unix socket and connects each with the one at target; both are endpoints as OVSDB writes them, until ctx ends.
func (l *Ledger) Serve(ctx context.Context, at, target string) error {
	path, target := path(at), path(target)
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen between controllers and database: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	g.Go(func() error {
		for {
			conn, err := listener.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return nil //nolint:nilerr // told to end
				}
				return fmt.Errorf("listen between controllers and database: %w", err)
			}
			g.Go(func() error { return l.pass(ctx, conn, target) })
		}
	})
	return g.Wait()
}

// pass connects a controller with the database until either ends.
func (l *Ledger) pass(ctx context.Context, client net.Conn, target string) error {
	var d net.Dialer
	server, err := d.DialContext(ctx, "unix", target)
	if err != nil {
		return errors.Join(fmt.Errorf("connect a controller to the database: %w", err), client.Close())
	}
	hangUp := func() { _ = client.Close(); _ = server.Close() } // once one side has gone
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		defer hangUp()
		_, _ = io.Copy(client, server)
		return nil
	})
	g.Go(func() error {
		defer hangUp()
		return l.follow(io.TeeReader(client, server))
	})
	return g.Wait()
}

// follow reads requests (RFC 7047, 4.1) until there are no more.
func (l *Ledger) follow(r io.Reader) error {
	dec := json.NewDecoder(r)
	for {
		var request struct {
			Method string            `json:"method"`
			Params []json.RawMessage `json:"params"`
		}
		err := dec.Decode(&request)
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax), errors.As(err, &kind):
			return fmt.Errorf("read what a controller asks of the database: %w", err)
		case err != nil:
			return nil //nolint:nilerr // one side has gone
		case request.Method == "transact" && len(request.Params) > 0:
			if err := l.count(request.Params[1:]); err != nil {
				return err
			}
		}
	}
}

// count adds a transaction. What it only reads or makes sure of is no operation here.
func (l *Ledger) count(operations []json.RawMessage) error {
	var t Totals
	for _, text := range operations {
		t.Bytes += len(text)
		var op struct{ Op, Table string }
		if err := json.Unmarshal(text, &op); err != nil {
			return fmt.Errorf("read what a controller asks of the database: %w", err)
		}
		switch op.Op {
		case "insert", "update", "mutate", "delete":
			t.Operations++
			if l.About(op.Table) {
				t.About++
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.Operations > 0 {
		l.totals.Transactions++
		l.totals.Bytes += t.Bytes
	} else {
		l.totals.Reads++
	}
	l.totals.Operations += t.Operations
	l.totals.About += t.About
	return nil
}

// path is that of a unix socket's endpoint.
func path(endpoint string) string { return strings.TrimPrefix(endpoint, "unix:") }

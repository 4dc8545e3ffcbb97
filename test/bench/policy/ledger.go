package main

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

// ledger counts what the controllers ask of the northbound database. It stands between: what the controllers send is passed on at once, and read afterwards.
type ledger struct {
	mu sync.Mutex
	totals
}

// totals are what was asked for so far.
type totals struct {
	// transactions are those that could change something; reads those that could not.
	transactions, reads int
	// operations that change something, and those of them that are about rows of policies.
	operations, policies int
}

func (t totals) since(before totals) totals {
	return totals{t.transactions - before.transactions, t.reads - before.reads, t.operations - before.operations, t.policies - before.policies}
}

func (l *ledger) read() totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.totals
}

// serve accepts connections on a unix socket and connects each with the one at target, until ctx ends.
func (l *ledger) serve(ctx context.Context, path, target string) error {
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
func (l *ledger) pass(ctx context.Context, client net.Conn, target string) error {
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
func (l *ledger) follow(r io.Reader) error {
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
func (l *ledger) count(operations []json.RawMessage) error {
	var t totals
	for _, text := range operations {
		var op struct{ Op, Table string }
		if err := json.Unmarshal(text, &op); err != nil {
			return fmt.Errorf("read what a controller asks of the database: %w", err)
		}
		switch op.Op {
		case "insert", "update", "mutate", "delete":
			t.operations++
			if isPolicyTable(op.Table) {
				t.policies++
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.operations > 0 {
		l.transactions++
	} else {
		l.reads++
	}
	l.operations += t.operations
	l.policies += t.policies
	return nil
}

func isPolicyTable(table string) bool {
	switch table {
	case "Port_Group", "Address_Set", "ACL":
		return true
	}
	return false
}

// path is that of a unix socket's endpoint.
func path(endpoint string) string { return strings.TrimPrefix(endpoint, "unix:") }

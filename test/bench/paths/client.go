package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// answerTimeout is how long a connection may take to come about or an answer to come: a packet that is lost is sent again meanwhile.
const answerTimeout = 10 * time.Second

// client is a client pod that asks one address.
type client struct {
	namespace string
	server    netip.Addr
	ports     ports
	length    time.Duration
	workers   int
}

// work is what a client got done.
type work struct {
	// done is the number of connections, of requests, or of MiB, in the time that they took.
	done float64
	took time.Duration
	// failed are connections that did not come about or had no answer.
	failed int
	// each request's time, where that was measured.
	each []float64
}

func (c client) dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: answerTimeout}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.server, port).String())
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a TCP connection is a %T", conn), conn.Close())
	}
	return tcp, nil
}

// connections opens connections, has a line answered on each, and closes it, all workers at once.
func (c client) connections(ctx context.Context) (work, error) {
	var mu sync.Mutex
	var all work
	var errs []error
	var g sync.WaitGroup
	began := time.Now()
	for i := range c.workers {
		g.Go(func() {
			var done, failed int
			var last error
			err := in(c.namespace, func() error {
				for n := i; ctx.Err() == nil && time.Since(began) < c.length; n++ {
					if err := c.once(ctx, c.ports.lines()[n%len(c.ports.lines())]); err != nil {
						last = err
						failed++
						continue
					}
					done++
				}
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			all.done, all.failed = all.done+float64(done), all.failed+failed
			errs = append(errs, err, last)
		})
	}
	g.Wait()
	all.took = time.Since(began)
	if all.done == 0 {
		return all, fmt.Errorf("no connection to %s: %w", c.server, errors.Join(errs...))
	}
	return all, context.Cause(ctx)
}

// once is one connection.
func (c client) once(ctx context.Context, port uint16) error {
	conn, err := c.dial(ctx, port)
	if err != nil {
		return err
	}
	_, err = request(conn)
	return errors.Join(err, conn.Close())
}

// request has a line answered, and says how long that took.
func request(conn net.Conn) (time.Duration, error) {
	var line [lineSize]byte
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := conn.Write(line[:]); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(conn, line[:])
	return time.Since(began), err
}

// requests asks on one connection, each when the one before is answered; their times are in microseconds.
func (c client) requests(ctx context.Context) (w work, err error) {
	err = in(c.namespace, func() error {
		conn, err := c.dial(ctx, c.ports.lines()[0])
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		for began := time.Now(); ctx.Err() == nil && (w.took < c.length || len(w.each) == 0); w.took = time.Since(began) {
			took, err := request(conn)
			if err != nil {
				return err
			}
			w.each = append(w.each, float64(took)/float64(time.Microsecond))
		}
		return context.Cause(ctx)
	})
	slices.Sort(w.each)
	w.done = float64(len(w.each))
	if err != nil {
		err = fmt.Errorf("requests to %s: %w", c.server, err)
	}
	return w, err
}

// stream sends as fast as it is taken, and returns what arrived.
func (c client) stream(ctx context.Context) (w work, err error) {
	err = in(c.namespace, func() error {
		conn, err := c.dial(ctx, c.ports.stream())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(c.length + answerTimeout)); err != nil {
			return err
		}
		buf := make([]byte, chunk)
		var arrived uint64
		began := time.Now()
		for ctx.Err() == nil && time.Since(began) < c.length {
			if _, err := conn.Write(buf); err != nil {
				return err
			}
		}
		if err := conn.CloseWrite(); err != nil {
			return err
		}
		if err := binary.Read(conn, binary.BigEndian, &arrived); err != nil {
			return err
		}
		w = work{done: float64(arrived) / (1 << 20), took: time.Since(began)}
		return context.Cause(ctx)
	})
	if err != nil {
		err = fmt.Errorf("a stream to %s: %w", c.server, err)
	}
	return w, err
}

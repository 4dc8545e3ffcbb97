package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

const (
	// lineSize is of a request and of its answer, chunk of what a stream is written in.
	lineSize, chunk = 64, 256 << 10
	// linePorts are as many as connections of a minute need: each takes a port of the client, which cannot be used towards the same port again for as long.
	linePorts = 16
	firstPort = 8001
)

// ports are those of a server: on all but the last requests are answered, on the last a stream is swallowed.
type ports []uint16

func usualPorts() ports {
	p := make(ports, linePorts+1)
	for i := range p {
		p[i] = firstPort + uint16(i)
	}
	return p
}

func (p ports) lines() []uint16 { return p[:len(p)-1] }
func (p ports) stream() uint16  { return p[len(p)-1] }

// listen listens on the ports in a network namespace, an empty one is the caller's, and serves until ctx ends. A port that is zero gets a number.
func listen(ctx context.Context, namespace string, p ports) error {
	for i := range p {
		var l net.Listener
		err := in(namespace, func() (err error) {
			var lc net.ListenConfig
			l, err = lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", p[i]))
			return err
		})
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		addr, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		p[i] = addr.Port()
		answer := echo
		if i == len(p)-1 {
			answer = swallow
		}
		go accept(ctx, l, answer)
	}
	return nil
}

// accept answers connections until the listener is closed.
func accept(ctx context.Context, l net.Listener, answer func(net.Conn) error) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client misses its answer, and says so
		}
		go func() {
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			defer func() { _ = conn.Close() }()
			_ = answer(conn) // likewise
		}()
	}
}

// echo answers requests until there is none any more.
func echo(conn net.Conn) error {
	var line [lineSize]byte
	for {
		if _, err := io.ReadFull(conn, line[:]); err != nil {
			return err
		}
		if _, err := conn.Write(line[:]); err != nil {
			return err
		}
	}
}

// swallow reads until the client has written all, and answers how many bytes there were.
func swallow(conn net.Conn) error {
	buf := make([]byte, chunk)
	var sum uint64
	for {
		n, err := conn.Read(buf)
		sum += uint64(n)
		if errors.Is(err, io.EOF) {
			return binary.Write(conn, binary.BigEndian, sum)
		}
		if err != nil {
			return err
		}
	}
}

// in runs f in a network namespace; an empty one is the caller's.
func in(namespace string, f func() error) error {
	if namespace == "" {
		return f()
	}
	return netns.Do(namespace, f)
}

package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// idleTimeout ends connections that nobody uses, and those whose other end is gone.
const idleTimeout = 5 * time.Minute

// ServerConfig says where a server listens.
type ServerConfig struct {
	Place Place
	// Ports on all addresses of the place; zero ones are the usual.
	Ports Ports
	Log   *slog.Logger
}

// Server answers the traffic of runs, records it, and makes runs itself when its control port is asked to.
type Server struct {
	log      *slog.Logger
	place    Place
	tcp      map[Kind]net.Listener
	control  net.Listener
	probes   *datagrams
	recorder *recorder
	runs     *runs
}

// Listen opens a server's sockets. Serve must follow, which closes them.
func Listen(ctx context.Context, c ServerConfig) (s *Server, err error) {
	roomToRun()
	c.Ports.Defaults()
	s = &Server{log: c.Log, place: c.Place, tcp: map[Kind]net.Listener{}, recorder: newRecorder(), runs: newRuns()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for kind, port := range map[Kind]uint16{Echo: c.Ports.Echo, Upload: c.Ports.Sink, Download: c.Ports.Source} {
		if s.tcp[kind], err = c.Place.listen(ctx, fmt.Sprintf(":%d", port)); err != nil {
			delete(s.tcp, kind)
			return nil, fmt.Errorf("serve connections of kind %s: %w", kind, err)
		}
	}
	if s.control, err = c.Place.listen(ctx, fmt.Sprintf(":%d", c.Ports.Control)); err != nil {
		return nil, fmt.Errorf("serve control: %w", err)
	}
	udp, err := c.Place.listenUDP(ctx, fmt.Sprintf(":%d", c.Ports.Probe))
	if err != nil {
		return nil, fmt.Errorf("serve probes: %w", err)
	}
	if s.probes, err = newDatagrams(udp); err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return s, nil
}

// close closes what is open. Nothing can be done about errors, and nobody waits for what is lost.
func (s *Server) close() {
	for _, l := range s.tcp {
		_ = l.Close()
	}
	if s.control != nil {
		_ = s.control.Close()
	}
	if s.probes != nil {
		_ = s.probes.conn.Close()
	}
}

// Serve serves until ctx ends, and ends the runs that it has made.
func (s *Server) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, s.close)()
	for kind, l := range s.tcp {
		g.Go(func() error { return s.serveTCP(ctx, kind, l) })
	}
	g.Go(func() error { return s.serveProbes(ctx) })
	g.Go(func() error { return s.serveControl(ctx) })
	g.Go(func() error { return s.runs.serve(ctx, s.place) })
	return g.Wait()
}

func (s *Server) serveProbes(ctx context.Context) error {
	err := s.answerProbes()
	select {
	case <-ctx.Done(): // it is closed
		return nil
	default:
		return err
	}
}

// answerProbes answers until the socket fails.
func (s *Server) answerProbes() error {
	buf := make([]byte, 64<<10)
	for {
		r, err := s.probes.read(buf)
		if err != nil && transient(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive probes: %w", err)
		}
		p, ours, intact := parseProbe(r.data)
		if ours && p.kind != typeProbe {
			continue
		}
		// Answered first: recording takes time. Wrong contents are answered as they are, so that the sender sees them as well. Others' datagrams are echoed.
		if ours {
			r.data[4] = typeReply
		}
		if err := s.probes.answer(r, r.data); err != nil && !transient(err) {
			return fmt.Errorf("answer a probe of %s: %w", r.from, err)
		}
		if ours {
			s.recorder.arrived(served{probe: p, from: unmap(r.from), at: r.at, intact: intact})
		}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (s *Server) serveTCP(ctx context.Context, kind Kind, l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept connections of kind %s: %w", kind, err)
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return errors.Join(fmt.Errorf("accept connections: got a %T", conn), conn.Close())
		}
		open.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = tcp.Close() })()
			defer func() { _ = tcp.Close() }()
			if err := s.converse(ctx, kind, tcp); err != nil && ctx.Err() == nil {
				s.log.Info("connection ended", "kind", kind, "client", conn.RemoteAddr(), "reason", err)
			}
		})
	}
}

// converse serves one connection.
func (s *Server) converse(ctx context.Context, kind Kind, tcp *net.TCPConn) error {
	h, first, err := readHello(tcp)
	if err != nil {
		return err
	}
	if h == nil {
		return plain(kind, tcp, first)
	}
	if h.kind != kind {
		return fmt.Errorf("the client wants %s on the port of %s", h.kind, kind)
	}
	from, err := netip.ParseAddrPort(tcp.RemoteAddr().String())
	if err != nil {
		return fmt.Errorf("read the client's address: %w", err)
	}
	m := s.recorder.connection(*h, unmap(from))
	switch kind {
	case Echo:
		err = echo(tcp, m)
	case Upload:
		err = sink(tcp, *h, m)
	case Download:
		err = source(ctx, tcp, *h, m)
	}
	m.end(reason(err), err)
	return err
}

// readHello reads a hello, or as much as shows that there is none, which it returns.
func readHello(tcp *net.TCPConn) (*hello, []byte, error) {
	buf, n := make([]byte, helloSize), 0
	for n < helloSize {
		if err := tcp.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
			return nil, nil, err
		}
		got, err := tcp.Read(buf[n:])
		n += got
		if !mayBeHello(buf[:n]) || errors.Is(err, io.EOF) {
			return nil, buf[:n], nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
	h, err := parseHello(buf)
	return &h, nil, err
}

// plain serves a client that is no run.
func plain(kind Kind, tcp *net.TCPConn, first []byte) error {
	if err := tcp.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
		return err
	}
	var err error
	switch kind {
	case Echo:
		if _, err = tcp.Write(first); err == nil {
			_, err = io.Copy(struct{ io.Writer }{tcp}, tcp)
		}
	case Upload:
		_, err = io.Copy(io.Discard, tcp)
	}
	return err
}

// echo returns what comes, unchecked, until the client ends it: the client sees what is wrong.
func echo(tcp *net.TCPConn, m *meter) error {
	return receive(tcp, m, func(b []byte) error {
		_, err := tcp.Write(b)
		return err
	})
}

// sink reads, checks, and in the end gives a receipt: the number of bytes. Wrong contents it reports at once, by "corrupt OFFSET".
func sink(tcp *net.TCPConn, h hello, m *meter) error {
	check := verifier{seed: h.seed()}
	err := receive(tcp, m, check.check)
	var corrupt errCorrupt
	switch {
	case errors.As(err, &corrupt):
		_, _ = fmt.Fprintf(tcp, "%s%d\n", corruptReceipt, corrupt.offset)
		// Closing with unread data would reset the connection, and the client would not get to read why.
		_ = tcp.CloseWrite()
		_ = tcp.SetReadDeadline(time.Now().Add(endTimeout))
		_, _ = io.Copy(io.Discard, tcp)
	case err == nil:
		_, err = fmt.Fprintln(tcp, check.offset)
	}
	return err
}

// receive hands what comes to use, until the client ends its half.
func receive(tcp *net.TCPConn, m *meter, use func([]byte) error) error {
	buf := make([]byte, readSize)
	for {
		if err := tcp.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return err
		}
		n, err := tcp.Read(buf)
		if n > 0 {
			m.add(int64(n))
			if err := use(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// source sends until the client ends its half.
func source(ctx context.Context, tcp *net.TCPConn, h hello, m *meter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		var b [1]byte
		_, err := tcp.Read(b[:])
		if err == nil || errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
	g.Go(func() error { return sample(ctx, tcp, m, h.rate, 0) })
	g.Go(func() error {
		p := pacer{rate: h.rate, silence: idleTimeout}
		err := p.stream(ctx, tcp, h.seed())
		if err != nil {
			_ = tcp.SetReadDeadline(time.Now())
		}
		return err
	})
	return g.Wait()
}

func (s *Server) serveControl(ctx context.Context) error {
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, Handler: s.handler()}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(s.control); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve control: %w", err)
	}
	return nil
}

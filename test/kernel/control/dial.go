package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// pathDial turns a connection to the server into one to an address in the virtual machine.
const pathDial = "/dial"

// dialTimeout bounds a dial in the virtual machine.
const dialTimeout = 20 * time.Second

// DialIn connects to numeric addresses from a network namespace of the virtual machine, which need not be reachable from outside; the machine's own if empty.
func (c *Client) DialIn(netns string) DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := c.dial(ctx, "tcp", c.addr)
		if err != nil {
			return nil, fmt.Errorf("connect to the virtual machine: %w", err)
		}
		through, err := ask(ctx, conn, url.Values{"netns": {netns}, "network": {network}, "addr": {addr}})
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return through, nil
	}
}

// ask asks for the change of a connection's other end.
func ask(ctx context.Context, conn net.Conn, query url.Values) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vm"+pathDial+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask the virtual machine to dial %s: %w", query.Get("addr"), err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req) //nolint:bodyclose // what follows is no body
	if err != nil {
		return nil, fmt.Errorf("ask the virtual machine to dial %s: %w", query.Get("addr"), err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, err := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("dial %s from namespace %q of the virtual machine: %s", query.Get("addr"), query.Get("netns"), body), err)
	}
	return &bufferedConn{Conn: conn, r: r}, nil
}

// bufferedConn is a connection of which something has been read already.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// dial is the server's part.
func (s *Server) dial(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: -1} // who is silent is silent
	var to net.Conn
	open := func() (err error) {
		to, err = d.DialContext(ctx, r.FormValue("network"), r.FormValue("addr"))
		return err
	}
	var err error
	if ns := r.FormValue("netns"); ns != "" {
		err = netns.Do(filepath.Join(NamespaceDir, ns), open)
	} else {
		err = open()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = to.Close() }()
	from, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = from.Close() }()
	if _, err := io.WriteString(from, "HTTP/1.1 101 Switching Protocols\r\n\r\n"); err != nil {
		return // the client has gone
	}
	var g errgroup.Group
	for _, pair := range []struct {
		dst net.Conn
		src io.Reader
	}{{to, buffered.Reader}, {from, to}} {
		g.Go(func() error {
			_, err := io.Copy(pair.dst, pair.src)
			if tcp, ok := pair.dst.(*net.TCPConn); ok {
				return errors.Join(err, tcp.CloseWrite())
			}
			return err
		})
	}
	_ = g.Wait() // how a connection ends is for those who have it
}

// Package gate is the door to OVN's databases for those who may do everything in them. ovsdb-server has one authority for all of its TLS listeners: a second one of its own, beside that
// for nodes, would let nodes in too. The gate lets in whoever has a certificate of the authority that it is given, and connects them with ovsdb-server's unix socket, on which no role limits
// what they do. Forward is the other end, for programs that are to reach a gate by a unix socket: ovsdb-server's raft, whose own TLS would trust nodes as well.
package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/lobby"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// What a connection may take. A database's clients keep theirs for days.
const (
	handshakeTimeout      = 10 * time.Second
	dialTimeout           = 5 * time.Second
	acceptPause           = 100 * time.Millisecond
	defaultMaxConnections = 256
	// maxStrangers are the connections besides of which it is not known whose they are; for one more the one that has been there longest is closed.
	maxStrangers = 256
)

// Config says where a gate is. Files are read again for every connection.
type Config struct {
	// Listen is the gate's HOST:PORT.
	Listen string
	// Unix is the socket of ovsdb-server.
	Unix string
	// CA has the authorities whose certificates open the gate, Cert and Key are what it shows itself.
	CA, Cert, Key string
	// MaxConnections at a time, 256 if 0; more are closed at once.
	MaxConnections int
	Logger         *slog.Logger
}

// Validate reports every error in c.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("gate: address to listen on %q: want HOST:PORT", c.Listen))
	}
	if c.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("gate: %d connections at most: want 1 or more, or 0 for %d", c.MaxConnections, defaultMaxConnections))
	}
	return errors.Join(append(errs, validPaths(map[string]string{"socket": c.Unix, "authority": c.CA, "certificate": c.Cert, "key": c.Key}))...)
}

func validPaths(paths map[string]string) error {
	var errs []error
	for what, path := range paths {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("gate: %s %q: want an absolute path", what, path))
		}
	}
	return errors.Join(errs...)
}

// Run serves the gate until ctx ends. Certificates that are missing or out of date when it starts are an error; later they are one of each connection, and logged.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	files := &pki.Files{Read: os.ReadFile, CA: c.CA, Cert: c.Cert, Key: c.Key}
	if _, err := files.Check(time.Now()); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	l, err := listener().Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("gate: %w: another process has the port, or the address is not this machine's", err)
	}
	c.Logger.Info("gate is open", "address", l.Addr(), "socket", c.Unix)
	server := files.ServerTLS(time.Now)
	return door{
		log: c.Logger, max: c.MaxConnections,
		know: func(ctx context.Context, conn net.Conn) (half, error) {
			near := tls.Server(conn, server)
			return near, near.HandshakeContext(ctx)
		},
		connect: func(ctx context.Context) (half, error) {
			db, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", c.Unix)
			if err != nil {
				return nil, fmt.Errorf("connect with ovsdb-server: %w: is it running?", err)
			}
			return db.(*net.UnixConn), nil
		},
	}.serve(ctx, l)
}

// listener speaks TCP alone: what silence looks at, and has the kernel ask, is no connection's of MPTCP, which Go's listeners speak otherwise.
func listener() *net.ListenConfig {
	l := &net.ListenConfig{KeepAliveConfig: alive()}
	l.SetMultipathTCP(false)
	return l
}

// half is a connection that can be ended in one direction: both *tls.Conn and *net.UnixConn are.
type half interface {
	net.Conn
	CloseWrite() error
}

// door accepts connections and joins each with another.
type door struct {
	log *slog.Logger
	max int
	// know makes sure of who it is that was accepted, and connect reaches whom it is joined with: nobody who is not known causes a connection there.
	know    func(ctx context.Context, conn net.Conn) (near half, err error)
	connect func(ctx context.Context) (far half, err error)
}

// serve closes l, and all connections, when ctx ends.
func (d door) serve(ctx context.Context, l net.Listener) error {
	if d.max == 0 {
		d.max = defaultMaxConnections
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	places, strangers := make(chan struct{}, d.max), &lobby.Lobby{Room: maxStrangers}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil { // out of file descriptors, or a client that has gone again
			d.log.Warn("a connection could not be accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if shown := strangers.Enter(conn); shown != nil {
			d.log.Debug("a connection has not said whose it is, and others wait", "peer", shown.RemoteAddr())
		}
		open.Go(func() { d.handle(ctx, conn, strangers, places) })
	}
}

func (d door) handle(ctx context.Context, conn net.Conn, strangers *lobby.Lobby, places chan struct{}) {
	defer func() { _ = conn.Close() }()
	entering, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	near, err := d.know(entering, conn)
	if waited := strangers.Leave(conn); !waited {
		return
	}
	var far half
	if err == nil {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			far, err = d.connect(entering)
		default:
			err = fmt.Errorf("there are %d, as many as there may be", d.max)
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			d.log.Warn("a connection is refused", "peer", conn.RemoteAddr(), "error", err)
		}
		return
	}
	d.join(ctx, near, far)
}

// join copies both ways until both have ended, or ctx, or the machine of one of them is gone.
func (d door) join(ctx context.Context, near, far half) {
	closeBoth := func() { _ = near.Close(); _ = far.Close() }
	defer closeBoth()
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	var watched, both sync.WaitGroup
	defer watched.Wait()
	defer cancel()
	for _, c := range []half{near, far} {
		watched.Go(func() {
			if watch(ctx, c) {
				d.left(c)
			}
		})
	}
	for to, from := range map[half]half{near: far, far: near} {
		both.Go(func() {
			if _, err := io.Copy(to, from); err != nil {
				if unanswered(err) {
					d.left(from)
				}
				closeBoth() // the other direction has nobody to answer any more
				return
			}
			_ = to.CloseWrite() // a peer that is gone needs no goodbye
		})
	}
	both.Wait()
}

// left says that a machine has been given up.
func (d door) left(c half) {
	d.log.Warn("a connection is closed: its other end's machine has not answered for seconds: it has crashed, or the network between is cut", "peer", c.RemoteAddr())
}

package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/lobby"
	"github.com/godwit-cni/godwit/pkg/pki"
)

const (
	// handshakeTimeout bounds what a client may take before it is known who it is.
	handshakeTimeout = 5 * time.Second
	// silenceTimeout is after how long a connection that says nothing is closed.
	silenceTimeout = 3 * aliveEvery
	// acceptPause is the time to the next connection after one could not be accepted.
	acceptPause = 100 * time.Millisecond
	// maxConnections at a time, and maxOfNode of one node's agent; more are closed at once. maxStrangers are those besides of which it is not known whose they are; for one more the one that has been there longest is closed.
	maxConnections = 256
	maxOfNode      = 32
	maxStrangers   = 256
)

// Service judges and does what the sources of migrations say. It is called from several goroutines.
type Service interface {
	// Admit says why a node has no say in a migration now, nil if it has.
	Admit(node string, m Migration) error
	// Handle does what an admitted node says.
	Handle(ctx context.Context, m Migration, msg Message) (Reply, error)
}

// Server listens for the agents of other nodes.
type Server struct {
	Files   *pki.Files
	Service Service
	Log     *slog.Logger

	mu sync.Mutex
	// open is how many connections a node has; one that has none is not in it. all is how many there are.
	open map[string]int
	all  int
}

// Serve serves connections of l until ctx ends, and closes it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	strangers := &lobby.Lobby{Room: maxStrangers}
	cfg := s.Files.PeerServerTLS(time.Now)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil { // out of file descriptors, or a client that has gone again
			s.Log.Warn("a connection of another agent could not be accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if shown := strangers.Enter(conn); shown != nil {
			s.Log.Debug("connection has not said whose it is, and others wait", "from", shown.RemoteAddr())
		}
		open.Go(func() {
			err := s.serve(ctx, tls.Server(conn, cfg), func() bool { return strangers.Leave(conn) })
			switch {
			case ctx.Err() != nil, errors.Is(err, errShownOut):
			case errors.Is(err, io.EOF): // as it should: the migration is over
				s.Log.Debug("connection of another agent has ended", "from", conn.RemoteAddr())
			default:
				s.Log.Info("connection of another agent has ended", "from", conn.RemoteAddr(), "reason", err)
			}
		})
	}
}

// errShownOut is that of a connection of which it was not known whose it is when there was no more room for such ones.
var errShownOut = errors.New("others wait")

// serve is one connection. leave ends its wait among strangers, and says whether it was there still.
func (s *Server) serve(ctx context.Context, conn *tls.Conn, leave func() bool) error {
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err := errors.Join(conn.SetDeadline(time.Now().Add(handshakeTimeout)), conn.HandshakeContext(ctx))
	switch waited := leave(); {
	case !waited:
		return errShownOut
	case err != nil:
		return fmt.Errorf("handshake: %w", err)
	}
	node := conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	if !s.take(node) {
		return fmt.Errorf("node %s has %d connections already, or all have %d", node, maxOfNode, maxConnections)
	}
	defer s.give(node)
	var h hello
	if err := read(conn, &h); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	err = s.greet(node, h)
	if werr := write(conn, answerOf(Reply{}, err)); werr != nil || err != nil {
		return fmt.Errorf("node %s: %w", node, cmp.Or(err, werr))
	}
	for {
		if err := s.message(ctx, conn, node, h.Migration); err != nil {
			return fmt.Errorf("node %s: %w", node, err)
		}
	}
}

func (s *Server) greet(node string, h hello) error {
	if h.Version != Version {
		return fmt.Errorf("version %d: want %d: agents of another release open ports as they did before", h.Version, Version)
	}
	return s.Service.Admit(node, h.Migration)
}

// message takes one and answers it. Whether the node has a say is asked anew each time: the migration may be over.
func (s *Server) message(ctx context.Context, conn net.Conn, node string, m Migration) error {
	if err := conn.SetDeadline(time.Now().Add(silenceTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	var msg Message
	if err := read(conn, &msg); err != nil {
		return err
	}
	var reply Reply
	err := s.Service.Admit(node, m)
	if err == nil && msg.Kind != Alive {
		doing, cancel := context.WithTimeout(ctx, messageTimeout)
		defer cancel()
		reply, err = s.Service.Handle(doing, m, msg)
	}
	return write(conn, answerOf(reply, err))
}

func (s *Server) take(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[string]int{}
	}
	if s.all >= maxConnections || s.open[node] >= maxOfNode {
		return false
	}
	s.all++
	s.open[node]++
	return true
}

func (s *Server) give(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.open[node]--; s.open[node] == 0 {
		delete(s.open, node)
	}
}

package agent

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// Bounds on the health server's connections that are open at once: of one address, and in all. Prometheus needs one.
const (
	connectionsOfOne = 8
	connectionsOfAll = 256
)

// limited closes connections at once that are too many. The node's own processes are not counted: nobody else has the address that a connection goes to, so that pods
// and other nodes cannot keep the kubelet's probes out, however many connections they open.
type limited struct {
	net.Listener
	log *slog.Logger

	mu sync.Mutex
	// open is how many an address has; an address that has none is not in it.
	open map[netip.Addr]int
	all  int
}

func limit(l net.Listener, log *slog.Logger) *limited {
	return &limited{Listener: l, log: log, open: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, to := address(conn.RemoteAddr()), address(conn.LocalAddr())
		if from == to {
			return conn, nil
		}
		if l.take(from) {
			return &counted{Conn: conn, give: sync.OnceFunc(func() { l.give(from) })}, nil
		}
		l.log.Debug("connection is one too many", "from", conn.RemoteAddr(), "address", conn.LocalAddr())
		_ = conn.Close()
	}
}

func (l *limited) take(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= connectionsOfAll || l.open[from] >= connectionsOfOne {
		return false
	}
	l.all++
	l.open[from]++
	return true
}

func (l *limited) give(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

// address is without port and zone; the zero Addr if it is not of TCP.
func address(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn
	give func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.give()
	return c.Conn.Close()
}

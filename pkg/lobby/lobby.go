// Package lobby is where connections wait whose owners are not known yet. Anybody who reaches a port can open them and say nothing; if those counted among the connections that a server has room for, a
// few dozen a second would keep everybody else out.
package lobby

import (
	"net"
	"slices"
	"sync"
)

// Lobby has a bounded number of connections. When one more comes, the one that has waited longest is closed: a handshake takes milliseconds, and whoever means it is through before others in their hundreds have
// come. The zero value has no room. Safe for concurrent use.
type Lobby struct {
	// Room is for how many.
	Room int

	mu sync.Mutex
	// waiting are in the order in which they came.
	waiting []net.Conn
}

// Enter has a connection wait; shown says which one is closed for it, nil if none is.
func (l *Lobby) Enter(conn net.Conn) (shown net.Conn) {
	l.mu.Lock()
	if l.waiting = append(l.waiting, conn); len(l.waiting) > l.Room {
		shown = l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
	}
	l.mu.Unlock()
	if shown != nil {
		_ = shown.Close()
	}
	return shown
}

// Leave ends a connection's wait: its owner is known, or it has ended. It says whether the connection was waiting still.
func (l *Lobby) Leave(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, conn)
	if i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
	return i >= 0
}

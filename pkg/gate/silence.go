package gate

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A peer whose machine has gone takes no leave, and ovsdb-server asks nobody who comes by a unix socket whether he is still there: without these a dead ovn-northd would keep its lock for two minutes and a half, or for
// fifteen when something was on its way to it (tcp(7), tcp_retries2), and nothing written to NB would come to SB. ovsdb-server itself leaves a peer that says nothing after five to ten seconds.
const (
	// silence is how long a peer may leave what it was sent without acknowledgement; those that are sent nothing are asked when they have said nothing for askAfter, and every askAgain from then on.
	silence  = 5 * time.Second
	askAfter = 2 * time.Second
	askAgain = time.Second
	asked    = 3
)

// alive asks a peer that says nothing whether it is there.
func alive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: askAfter, Interval: askAgain, Count: asked}
}

// bounded ends a socket's connections with peers that do not acknowledge; sockets that are accepted have it of the one that listens.
func bounded(_, _ string, c syscall.RawConn) error {
	var err error
	if controlled := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
	}); controlled != nil {
		return controlled
	}
	return err
}

package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// A peer whose machine has gone takes no leave, and ovsdb-server asks nobody who comes by a unix socket whether he is still there: by the kernel's patience alone a dead ovn-northd would keep its lock for minutes, some fifteen
// when something was on its way to it (tcp(7), tcp_retries2), and nothing written to NB would come to SB. ovsdb-server itself leaves a peer that says nothing after five to ten seconds.
const (
	// silence is how long a peer's machine may leave what it was sent without acknowledgement; one that is sent nothing is asked when it has said nothing for askAfter, and every askAgain from then on.
	silence  = 5 * time.Second
	askAfter = 2 * time.Second
	askAgain = time.Second
	asked    = 3
)

// alive has the kernel ask a peer that is sent nothing whether it is there.
func alive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: askAfter, Interval: askAgain, Count: asked}
}

// watch closes a connection between machines when the other acknowledges nothing, and says so; otherwise it ends with ctx. It is not TCP_USER_TIMEOUT, which ends connections with a reader that is busy for so long too: its machine acknowledges
// that it has no room. So it may be with an ovn-northd that computes everything anew.
func watch(ctx context.Context, c half) (gone bool) {
	secure, ok := c.(*tls.Conn)
	if !ok {
		return false
	}
	conn, ok := secure.NetConn().(*net.TCPConn)
	if !ok {
		return false
	}
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if silent(conn) {
			_ = conn.Close() // whoever copies from or to it notices
			return true
		}
	}
}

// silent says whether something has been on its way for too long: what was sent last is not acknowledged, and nothing else has been.
func silent(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var info *unix.TCPInfo
	if err := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil || info == nil {
		return false
	}
	return info.Unacked > 0 && time.Duration(info.Last_ack_recv)*time.Millisecond >= silence
}

// unanswered says whether the kernel has given a connection up because nobody answered what it asked: the error may be that of the last router, or of the neighbour that was not found, instead of ETIMEDOUT.
func unanswered(err error) bool {
	return errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

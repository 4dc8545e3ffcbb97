package gate

import (
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Both ends of a connection between machines leave a peer that has gone without a word; pkg/ovnpod has a test that cuts one.
func TestPeersAreAskedWhetherTheyAreThere(t *testing.T) {
	l, err := listener().Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	near, err := dialer().DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	want := map[int]int{
		unix.TCP_USER_TIMEOUT: 0, unix.TCP_KEEPIDLE: int(askAfter / time.Second), unix.TCP_KEEPINTVL: int(askAgain / time.Second), unix.TCP_KEEPCNT: asked,
	}
	for end, conn := range map[string]net.Conn{"who dials": near, "who listens": far} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := map[int]int{}
		if err := raw.Control(func(fd uintptr) {
			for option := range want {
				if got[option], err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s has (-want +got):\n%s", end, diff)
		}
	}
}

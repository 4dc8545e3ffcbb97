package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// silentListener has nobody connect.
type silentListener struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
}

func (l *silentListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *silentListener) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }

// TestSwitchoverListens on all of the node's addresses, and goes on when they are told in another order or not at all for a while; what could not be listened on is tried again.
func TestSwitchoverListens(t *testing.T) {
	one, two, three := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.3")
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, refused, asked := []netip.Addr{one, two}, true, []string{}
		s := &switchover{
			log: slog.New(slog.NewTextHandler(t.Output(), nil)), port: 9480, files: pki.Dir(func(string) ([]byte, error) { return nil, errors.New("none") }, "/"),
			own: func() []netip.Addr { mu.Lock(); defer mu.Unlock(); return slices.Clone(now) },
			listen: func(_ context.Context, address string) (net.Listener, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, address)
				if refused && address == "[2001:db8::1]:9480" {
					return nil, errors.New("it is tentative")
				}
				return &silentListener{closed: make(chan struct{})}, nil
			},
		}
		change := func(f func()) { mu.Lock(); f(); mu.Unlock() }
		ended := make(chan error, 1)
		go func() { ended <- s.serve(t.Context(), s.own()) }()
		for _, step := range []func(){
			func() {}, func() { refused = false }, func() { now = []netip.Addr{two, one} }, func() { now = nil }, func() { now = []netip.Addr{one, two} },
		} {
			change(step)
			pauseFor(t.Context(), 2*listenAgain)
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("it ended: %v", err)
			default:
			}
		}
		change(func() {
			if n := len(slices.DeleteFunc(slices.Clone(asked), func(a string) bool { return a != "192.0.2.1:9480" })); n != 1 {
				t.Errorf("it listened %d times on an address on which it did at once: %v", n, asked)
			}
			if last := asked[len(asked)-1]; last != "[2001:db8::1]:9480" || len(asked) < 3 {
				t.Errorf("it listened on %v, want what failed again, until it does not", asked)
			}
			now = []netip.Addr{one, three}
		})
		if err := <-ended; !errors.Is(err, errMoved) {
			t.Errorf("it ended with %v when the node had another address, want %v", err, errMoved)
		}
	})
}

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A run tells for how long a connection has made no progress while it is open, and nothing of those that make some.
func TestIdle(t *testing.T) {
	n := newNetwork(t)
	serve(t, n.there, n.there4)
	there := Place{Namespace: n.there.Path()}
	l, err := there.listen(t.Context(), ":7777")
	if err != nil {
		t.Fatal(err)
	}
	mute, speak := context.WithCancel(t.Context())
	background(t, func(ctx context.Context) error { return meanPeer(ctx, l, func(*net.TCPConn) { <-mute.Done() }) })
	t.Cleanup(speak) // before the peer is waited for
	spec := Spec{Peers: []netip.Addr{n.there4}, Echo: Echoing{Connections: 2}, Upload: Bulk{Connections: 1}, Download: Bulk{Connections: 1}}
	muted := Spec{Peers: spec.Peers, Ports: Ports{Echo: 7777}, Echo: Echoing{Connections: 1}}
	for _, c := range []struct {
		name string
		spec Spec
		// idle says whether a connection waits.
		idle bool
	}{{"all move", spec, false}, {"one waits", muted, true}} {
		t.Run(c.name, func(t *testing.T) {
			run, err := Begin(t.Context(), Place{Namespace: n.here.Path()}, c.spec)
			if err != nil {
				t.Fatal(err)
			}
			within(t, func() error {
				if st := run.Status(); st.Open < st.Wanted {
					return fmt.Errorf("%+v: not all are open", st)
				}
				return nil
			})
			time.Sleep(ms(600))
			within(t, func() error { // one that moves is idle for a moment at a time
				if st := run.Status(); st.Open < st.Wanted || (st.Idle.Duration >= ms(500)) != c.idle {
					return fmt.Errorf("after 600 ms the run says %+v", st)
				}
				return nil
			})
			if c.idle {
				speak() // or the run waits in the end for who says nothing
			}
			if _, err := run.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// within waits a while until check has nothing to say any more.
func within(t *testing.T, check func() error) {
	t.Helper()
	err := errors.New("not looked at")
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); time.Sleep(ms(20)) {
		err = check()
	}
	if err != nil {
		t.Fatal(err)
	}
}

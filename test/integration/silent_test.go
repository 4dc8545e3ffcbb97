package integration

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// silencePatience is for noticing that a server says nothing, which takes 5 to 7 s, and for finding another, on a slow machine.
const silencePatience = 5 * time.Minute

// relay is a way to a database that may fall silent, as that to a node that is cut off does: nobody is refused, and nobody hears anything.
type relay struct {
	endpoint string
	silent   atomic.Bool
	served   atomic.Int32
}

func newRelay(t *testing.T, database string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &relay{endpoint: "tcp:" + l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", strings.TrimPrefix(database, "unix:"))
			if err != nil {
				_ = client.Close()
				continue
			}
			go r.carry(server, client)
			go r.carry(client, server)
		}
	}()
	return r
}

// carry carries what one end says to the other, or swallows it.
func (r *relay) carry(to io.WriteCloser, from io.Reader) {
	defer to.Close() //nolint:errcheck // the other end sees it
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if r.silent.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		r.served.Add(1)
	}
}

// TestSilentServer: a server that says nothing is left for another, by who is connected with it and by who connects.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	central := ovntest.Central(t)
	first, second := newRelay(t, central.NB), newRelay(t, central.NB)
	connect := func() *ovn.NB {
		t.Helper()
		nb, err := ovn.Connect(t.Context(), ovn.Config{
			Endpoints: []string{first.endpoint, second.endpoint}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nb.Close)
		return nb
	}
	nb := connect()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- nb.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if !nb.Connected() || second.served.Load() > 0 {
		t.Fatal("the first server is not the one that is used")
	}
	start := time.Now()
	first.silent.Store(true)
	for second.served.Load() == 0 || !nb.Connected() {
		if time.Since(start) > silencePatience {
			t.Fatalf("after %s the client is not connected with the server that answers", time.Since(start).Round(time.Second))
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("the other server was found after %s", time.Since(start).Round(100*time.Millisecond))
	connect()
}

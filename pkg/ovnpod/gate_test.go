package ovnpod

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
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/pkg/gate"
	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// forgotten is within how long the server behind a gate must hear that a client's machine has gone, on a slow machine: the gate's own five seconds, and not the kernel's minutes.
const forgotten = 30 * time.Second

// gated is a gate between a client and a server: the ends of a connection through it, and where the gate is.
type gated struct {
	client *tls.Conn
	server net.Conn
	here   *netns.Namespace
	log    *heard
}

// heard is a log of which the lines are waited for.
type heard struct{ lines chan string }

func (l *heard) Write(line []byte) (int, error) {
	l.lines <- string(line)
	return len(line), nil
}

// says waits for a line with these words.
func (l *heard) says(t *testing.T, words string) {
	t.Helper()
	var all []string
	for end := time.After(patience); ; {
		select {
		case line := <-l.lines:
			if all = append(all, line); strings.Contains(line, words) {
				return
			}
		case <-end:
			t.Fatalf("the log lacks %q:\n%s", words, strings.Join(all, ""))
		}
	}
}

func newGated(t *testing.T) gated {
	t.Helper()
	here, there := wired(t)
	dir, socket := certificates(t), filepath.Join(shortDir(t), "db.sock")
	server, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	files := pki.Dir(os.ReadFile, dir)
	ctx, stop := context.WithCancel(t.Context())
	ended, log := make(chan error, 1), &heard{lines: make(chan string, 100)}
	go func() {
		ended <- netns.Do(here.Path(), func() error {
			return gate.Run(ctx, gate.Config{Listen: "192.0.2.1:6644", Unix: socket, CA: files.CA, Cert: files.Cert, Key: files.Key, Logger: slog.New(slog.NewTextHandler(log, nil))})
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	g := gated{client: tls.Client(dialIn(t, there, "192.0.2.1:6644"), files.ClientTLS([]string{"127.0.7.1"}, time.Now)), here: here, log: log}
	t.Cleanup(func() { _ = g.client.Close() })
	if _, err := io.WriteString(g.client, "here"); err != nil {
		t.Fatal(err)
	}
	if g.server, err = server.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.server.Close() })
	if _, err := io.ReadFull(g.server, make([]byte, len("here"))); err != nil {
		t.Fatal(err)
	}
	return g
}

// The server behind the gate hears of a client that is gone without a word, be something on its way to it or not: the lock of an ovn-northd is free then.
func TestGateForgetsAClientWhoseMachineIsGone(t *testing.T) {
	for name, say := range map[string]string{"that was said nothing": "", "that something was on its way to": "news"} {
		t.Run(name, func(t *testing.T) {
			g := newGated(t)
			unplug(t, g.here)
			start := time.Now()
			if _, err := io.WriteString(g.server, say); err != nil {
				t.Fatal(err)
			}
			if err := g.server.SetReadDeadline(start.Add(forgotten)); err != nil {
				t.Fatal(err)
			}
			if n, err := g.server.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %s the connection has said %d bytes more (%v), want it closed", time.Since(start).Round(time.Millisecond), n, err)
			}
			t.Logf("closed after %s", time.Since(start).Round(10*time.Millisecond))
			g.log.says(t, `its other end's machine has not answered for seconds: it has crashed, or the network between is cut" peer=192.0.2.2:`)
		})
	}
}

// A client that reads nothing for long, with more on its way to it than it has room for, is there all the same.
func TestGateWaitsForAClientThatIsBusy(t *testing.T) {
	const much, busy = 64 << 20, 12 * time.Second
	g := newGated(t)
	sent := make(chan error, 1)
	go func() {
		_, err := g.server.Write(make([]byte, much))
		sent <- err
	}()
	select {
	case err := <-sent:
		t.Fatalf("before the client reads the server is done with it: %v; want all buffers full, and the connection there", err)
	case <-time.After(busy):
	}
	if n, err := io.CopyN(io.Discard, g.client, much); err != nil {
		t.Errorf("the client reads %d bytes of %d: %v", n, much, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// wired are two namespaces with a wire between them: 192.0.2.1 here, 192.0.2.2 there.
func wired(t *testing.T) (here, there *netns.Namespace) {
	t.Helper()
	var both [2]*netns.Namespace
	for i := range both {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		both[i] = n
	}
	other, err := os.Open(both[1].Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := both[0].Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(int(other.Fd()))})
	}); err != nil {
		t.Fatal(err)
	}
	for i, n := range both {
		if err := n.Do(func() error {
			link, err := netlink.LinkByName("wire")
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/24", 1+i))
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
		}); err != nil {
			t.Fatal(err)
		}
	}
	return both[0], both[1]
}

// unplug has everything that is sent to the other end arrive nowhere, without anybody being told.
func unplug(t *testing.T, n *netns.Namespace) {
	t.Helper()
	if err := n.Do(func() error {
		link, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99},
		})
	}); err != nil {
		t.Fatal(err)
	}
}

// dialIn connects from a namespace, once somebody listens.
func dialIn(t *testing.T, from *netns.Namespace, address string) net.Conn {
	t.Helper()
	var conn net.Conn
	deadline := time.Now().Add(patience)
	for {
		err := from.Do(func() (err error) {
			conn, err = (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
			return err
		})
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// shortDir is a directory in which a unix socket's path is short enough.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/pkg/errand"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// said is what a program has written up to now.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until it has written a text.
func (s *said) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(s.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not said: %s", text, s)
		}
	}
}

// lookalike tells what it was started with, and as whom; then it goes on until it is interrupted, or ends with 3 where its last argument is "end".
const lookalike = `#!/bin/sh
trap 'echo counted; exit 0' INT
echo "$* as $(id -u) in $TZ with $(grep CapEff /proc/self/status | tr -d '[:space:]')"
case "$*" in *end) exit 3 ;; esac
while :; do sleep 0.02; done
`

// tapped is a host with a port, and an errand there that runs a lookalike of tcpdump.
func tapped(t *testing.T, args ...string) (*ovntest.OVSHost, Tcpdump, *said) {
	t.Helper()
	host := ovntest.Host(t, ovntest.Central(t), "one")
	dir, err := os.MkdirTemp("", "tcpdump") // not the test's own, which is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "tcpdump")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(program, []byte(lookalike), 0o755), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	out := &said{}
	return host, Tcpdump{
		OVSEndpoint: host.Endpoint, Port: ident.PodPort("ns", "a", ident.DefaultNetwork), Program: program, Args: args, Silence: time.Minute, Out: out, Err: out,
	}, out
}

// plug makes the port's link, and the port.
func plug(t *testing.T, host *ovntest.OVSHost) {
	t.Helper()
	if err := host.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "gwtapped"}, PeerName: "gwpeer"})
	}); err != nil {
		t.Fatal(err)
	}
	db := dialOVS(t, host)
	if err := db.EnsureBridge(t.Context(), ovs.DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	if err := db.EnsurePort(t.Context(), ovs.Port{
		Name: "gwtapped", ID: ident.PodPort("ns", "a", ident.DefaultNetwork), MAC: "0a:67:0a:f4:00:05", Owner: ovs.Owner{Container: "c", IfName: "eth0", Netns: "/run/netns/c", Pod: "ns/a", Conf: "godwit"},
	}); err != nil {
		t.Fatal(err)
	}
}

func dialOVS(t *testing.T, host *ovntest.OVSHost) *ovs.Client {
	t.Helper()
	db, err := ovs.Connect(t.Context(), ovs.Config{Endpoint: host.Endpoint, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// started runs the errand in the host's namespace.
func started(ctx context.Context, host *ovntest.OVSHost, d Tcpdump) chan error {
	done := make(chan error, 1)
	go func() { done <- host.Do(func() error { return d.Run(ctx) }) }()
	return done
}

// Tcpdump waits for the port, runs as nobody with one privilege, and ends, its program with it, when nobody looks any more.
func TestTcpdumpEndsWithWhoLooks(t *testing.T) {
	host, d, out := tapped(t, "icmp")
	r, w := io.Pipe()
	d.In = r
	done := started(t.Context(), host, d)
	plug(t, host)
	const netRaw = "CapEff:0000000000002000" // CAP_NET_RAW
	out.await(t, "-i gwtapped icmp as 65534 in UTC with "+netRaw)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !strings.HasSuffix(out.String(), "counted\n") || d.ExitCode(err) != 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// A connection that nobody has closed brings no word any more.
func TestTcpdumpEndsInSilence(t *testing.T) {
	host, d, out := tapped(t)
	plug(t, host)
	r, w := io.Pipe()
	d.In, d.Silence = r, 3*time.Second // a machine that is busy stops whoever speaks for a while
	start := time.Now()
	done := started(t.Context(), host, d)
	for range 15 {
		if _, err := w.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(d.Silence / 10)
	}
	spoken := time.Since(start)
	select {
	case err := <-done:
		t.Fatalf("it ended while it was spoken to: %v: %s", err, out)
	default:
	}
	if err := <-done; err != nil || time.Since(start) < spoken {
		t.Errorf("it ended after %s: %v: %s", time.Since(start), err, out)
	}
}

// What tcpdump exits with is the errand's code; a link that is gone has one of its own.
func TestTcpdumpExitCodes(t *testing.T) {
	host, d, out := tapped(t, "end")
	plug(t, host)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	d.In = r
	var exit *exec.ExitError
	if err := <-started(t.Context(), host, d); !errors.As(err, &exit) || d.ExitCode(err) != 3 {
		t.Errorf("tcpdump ended: %v, code %d: %s", err, d.ExitCode(err), out)
	}
	if err := host.Do(func() error {
		link, err := netlink.LinkByName("gwtapped")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-started(t.Context(), host, d); !errors.Is(err, ErrLinkGone) || d.ExitCode(err) != errand.ExitGone {
		t.Errorf("the link is gone: %v, code %d", err, d.ExitCode(err))
	}
	if code := d.ExitCode(fmt.Errorf("else")); code != 1 {
		t.Errorf("code %d", code)
	}
}

package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// What an ADD waits for has one deadline, so much before the plugin's that the plugin hears what was missing, also when undoing takes its time.
func TestAddAnswersBeforeThePluginGivesUp(t *testing.T) {
	const patience, undoing = 8 * time.Second, 1200 * time.Millisecond
	for name, c := range map[string]struct {
		prepare func(*bench)
		want    string
	}{
		"identity": {func(b *bench) { b.pods.Add(podA(nil)) }, "no annotation godwit.dev/identity"},
		"installed": {func(b *bench) {
			b.pods.Add(podA(identified()))
			b.node.bind = func(p *ovs.PortStatus) { p.Installed = false; b.node.slow["DeleteLink"] = undoing }
		}, "OVN did not bind port pod/ns/a/default"},
		"blocked": {func(b *bench) {
			b.pods.Add(targetPod())
			b.node.open = true
			b.node.bind = func(*ovs.PortStatus) { b.node.slow["DeleteLink"] = undoing }
		}, "OVN did not block port vm/ns/vm/default"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits
			b := newBench(t)
			c.prepare(b)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			start := time.Now()
			_, err := wire.NewClient(serveWire(t, b)).Do(ctx, *addRequest())
			took := time.Since(start)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("after %s: %v, want it to say %q", took, err, c.want)
			}
			requireWaited(t, err, time.Second, took)
			if left := b.node.left(); len(left) > 0 {
				t.Errorf("left on the node: %v", left)
			}
		})
	}
}

// serveWire is the agent's end of the socket.
func serveWire(t *testing.T, b *bench) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwa") // a unix socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "cni.sock")
	l, err := wire.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := wire.NewServer(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), b.handle)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return socket
}

// requireWaited checks that the error says for how long was waited: the time that passed.
func requireWaited(t *testing.T, err error, least, most time.Duration) {
	t.Helper()
	said := regexp.MustCompile(`waited (\S+) for`).FindStringSubmatch(err.Error())
	if said == nil {
		t.Fatalf("%v does not say how long was waited", err)
	}
	if d, perr := time.ParseDuration(said[1]); perr != nil || d < least || d > most+100*time.Millisecond {
		t.Errorf("%v: waited %s (%v), want between %s and %s", err, d, perr, least, most)
	}
}

func TestReserve(t *testing.T) {
	for _, c := range []struct{ caller, want time.Duration }{
		{54500 * time.Millisecond, 49500 * time.Millisecond}, {10 * time.Second, 5 * time.Second}, {2 * time.Second, time.Second},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), c.caller)
		defer cancel()
		ours, stop := withReserve(ctx)
		defer stop()
		deadline, ok := ours.Deadline()
		if left := time.Until(deadline); !ok || left > c.want+c.want/100 || left < c.want-time.Second {
			t.Errorf("of %s an ADD waits %s, want %s", c.caller, left, c.want)
		}
	}
	ours, stop := withReserve(t.Context())
	defer stop()
	if _, ok := ours.Deadline(); ok {
		t.Error("a deadline where the caller has none")
	}
}

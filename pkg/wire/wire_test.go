package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// startServer serves handle on a socket of the test's.
func startServer(t *testing.T, handle Handler) (socket string) {
	return startServerWith(t, &server{log: slog.New(slog.NewTextHandler(t.Output(), nil)), handle: handle, readTimeout: defaultReadTimeout})
}

func startServerWith(t *testing.T, s *server) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "gww")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "run", "cni.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(t.Context(), s)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return socket
}

func do(t *testing.T, socket string, req Request) (*Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return NewClient(socket).Do(ctx, req)
}

func validAdd() Request {
	return Request{
		Command: Add, Conf: "godwit", Network: "default", ContainerID: "c1", Netns: "/run/netns/x", IfName: "eth0",
		Pod: Pod{Namespace: "ns", Name: "pod-0.a", UID: "0b1e"},
	}
}

func TestRoundTrip(t *testing.T) {
	want := &Result{
		Host: Link{"gw1", "02:00:00:00:00:01"}, Container: Link{"eth0", "02:00:00:00:00:02"}, Netns: "/run/netns/x", MTU: 1400,
		IPs: []IP{{netip.MustParsePrefix("10.0.0.5/16"), netip.MustParseAddr("10.0.0.1")}},
	}
	var got *Request
	socket := startServer(t, func(ctx context.Context, req *Request) (*Result, error) {
		got = req
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 5*time.Second {
			t.Errorf("the operation's deadline is %v (%v), want before the caller's", deadline, ok)
		}
		return want, nil
	})
	res, err := do(t, socket, validAdd())
	if err != nil {
		t.Fatal(err)
	}
	equal := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
	if diff := cmp.Diff(want, res, equal); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	sent := validAdd()
	sent.Version, sent.TimeoutMillis = Version, got.TimeoutMillis
	if diff := cmp.Diff(&sent, got); diff != "" {
		t.Errorf("request (-sent +got):\n%s", diff)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	var result error
	socket := startServer(t, func(context.Context, *Request) (*Result, error) { return nil, result })
	for _, c := range []struct {
		err  error
		want types.Error
	}{
		{types.NewError(CodeUnavailable, "not now", "because"), types.Error{Code: CodeUnavailable, Msg: "not now", Details: "because"}},
		{fmt.Errorf("wrapped: %w", types.NewError(types.ErrTryAgainLater, "later", "")), types.Error{Code: types.ErrTryAgainLater, Msg: "later"}},
		{errors.New("plain"), types.Error{Code: types.ErrInternal, Msg: "plain"}},
	} {
		result = c.err
		_, err := do(t, socket, validAdd())
		var got *types.Error
		if !errors.As(err, &got) || *got != c.want {
			t.Errorf("%v arrived as %v, want %v", c.err, err, c.want)
		}
	}
}

func TestNotRunning(t *testing.T) {
	dir := t.TempDir()
	_, err := do(t, filepath.Join(dir, "none.sock"), validAdd())
	if !errors.Is(err, errNotRunning) {
		t.Errorf("no socket: %v, want errNotRunning", err)
	}
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := do(t, stale, validAdd()); !errors.Is(err, errNotRunning) {
		t.Errorf("a stale socket: %v, want errNotRunning", err)
	}
	again, err := Listen(t.Context(), stale)
	if err != nil {
		t.Fatalf("listening on a stale socket: %v", err)
	}
	defer func() { _ = again.Close() }()
	if _, err := Listen(t.Context(), stale); err == nil || !strings.Contains(err.Error(), "second godwit-agent") {
		t.Errorf("listening where another agent does: %v", err)
	}
}

func TestSocketIsRootsOnly(t *testing.T) {
	socket := startServer(t, func(context.Context, *Request) (*Result, error) { return nil, nil })
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, info.Mode().Perm(), err, want)
		}
	}
}

func TestCallerThatGoesAwayEndsTheOperation(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	socket := startServer(t, func(ctx context.Context, _ *Request) (*Result, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() { <-started; cancel() }()
	if _, err := NewClient(socket).Do(ctx, validAdd()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled call: %v", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the operation ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the operation went on")
	}
}

// TestOperationMayOutlastTheRequestsArrival: net/http's read timeouts must not end an operation that takes its time.
func TestOperationMayOutlastTheRequestsArrival(t *testing.T) {
	socket := startServerWith(t, &server{log: slog.New(slog.DiscardHandler), readTimeout: 300 * time.Millisecond, handle: func(ctx context.Context, _ *Request) (*Result, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
			return nil, nil
		}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := NewClient(socket).Do(ctx, validAdd()); err != nil {
		t.Error(err)
	}
}

// A connection that says nothing more after its request is closed: it must not stay for the agent's life.
func TestIdleConnectionEnds(t *testing.T) {
	socket := startServerWith(t, &server{
		log: slog.New(slog.DiscardHandler), readTimeout: 300 * time.Millisecond, handle: func(context.Context, *Request) (*Result, error) { return nil, nil },
	})
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the server closes it
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"version":%d,"command":"STATUS","timeoutMillis":1000}`, Version)
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Errorf("answer %q (%v), want 200 and the end of the connection", answer, err)
	}
}

func TestRefusals(t *testing.T) {
	called := false
	socket := startServer(t, func(context.Context, *Request) (*Result, error) { called = true; return nil, nil })
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	long, err := json.Marshal(map[string]any{"version": Version, "conf": strings.Repeat("x", maxBody)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, body string
		want       string
	}{
		{"not JSON", "{", "decode request"},
		{"another version", `{"version":99,"command":"ADD"}`, "speaks version 99"},
		{"unknown command", `{"version":1,"command":"FLY","timeoutMillis":1}`, `unknown command \"FLY\"`},
		{"no deadline", `{"version":1,"command":"STATUS"}`, "timeoutMillis is 0"},
		{"too long", string(long), "request body too large"},
	} {
		resp, err := client.Post("http://godwit-agent"+path, "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(b.String(), c.want) {
			t.Errorf("%s: %s %s, want 400 and %q", c.name, resp.Status, b.String(), c.want)
		}
	}
	if called {
		t.Error("a refused request was carried out")
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Request)
		want   string
	}{
		{"valid", func(*Request) {}, ""},
		{"no container", func(r *Request) { r.ContainerID = "" }, "containerID is empty"},
		{"long interface", func(r *Request) { r.IfName = "sixteen-chars-xx" }, "ifName"},
		{"interface with slash", func(r *Request) { r.IfName = "../x" }, "ifName"},
		{"relative netns", func(r *Request) { r.Netns = "x" }, "not an absolute path"},
		{"unknown network", func(r *Request) { r.Network = "blue" }, `network "blue" is not known: only "default" exists`},
		{"pod with slash", func(r *Request) { r.Pod.Name = "a/b" }, "K8S_POD_NAME"},
		{"DEL needs neither pod nor netns", func(r *Request) { r.Command, r.Pod, r.Netns, r.Network = Del, Pod{}, "", "" }, ""},
		{"GC needs a configuration", func(r *Request) { r.Command, r.Conf = GC, "" }, "conf is empty"},
	} {
		req := validAdd()
		req.TimeoutMillis = 1
		c.change(&req)
		err := req.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseArgs(t *testing.T) {
	for _, c := range []struct {
		args string
		want Pod
		err  string
	}{
		{"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=12-ab", Pod{"ns", "a", "12-ab"}, ""},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a.b-0;", Pod{"ns", "a.b-0", ""}, ""},
		{"", Pod{}, "K8S_POD_NAMESPACE \"\" is not"},
		{"K8S_POD_NAMESPACE=ns", Pod{}, "K8S_POD_NAME \"\" is not"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME", Pod{}, "is not KEY=VALUE"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_NAME=b", Pod{}, "is there twice"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_NAME=a;K8S_POD_NAMESPACE=ns", Pod{Namespace: "ns", Name: "a"}, ""},
		{"K8S_POD_NAMESPACE=n/s;K8S_POD_NAME=a", Pod{}, "K8S_POD_NAMESPACE"},
		{"K8S_POD_NAMESPACE=n.s;K8S_POD_NAME=a", Pod{}, "K8S_POD_NAMESPACE"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=A", Pod{}, "K8S_POD_NAME"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;K8S_POD_UID=../x", Pod{}, "K8S_POD_UID"},
		{"K8S_POD_NAMESPACE=" + strings.Repeat("n", 64) + ";K8S_POD_NAME=a", Pod{}, "K8S_POD_NAMESPACE"},
	} {
		got, err := ParseArgs(c.args)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("ParseArgs(%q) = %v, %v, want %v, %q", c.args, got, err, c.want, c.err)
		}
	}
}

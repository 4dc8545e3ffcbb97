package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

const (
	// answerMargin is how much earlier than its caller's deadline an operation ends, so that its error still arrives.
	answerMargin = 500 * time.Millisecond
	// maxTimeout bounds what a caller may ask for: the runtime's own limit on a whole chain is four minutes in containerd's defaults.
	maxTimeout         = 4 * time.Minute
	defaultReadTimeout = 10 * time.Second
)

func untilMillis(deadline time.Time) int64 { return time.Until(deadline).Milliseconds() }

// Handler carries a valid request out. ctx ends when the caller stops waiting. An error that is a *types.Error keeps its code.
type Handler func(ctx context.Context, req *Request) (*Result, error)

// NewServer makes the HTTP server of the agent's end. Requests end when ctx does: Shutdown
// then waits for what they undo.
func NewServer(ctx context.Context, log *slog.Logger, handle Handler) *http.Server {
	return newServer(ctx, &server{log: log, handle: handle, readTimeout: defaultReadTimeout})
}

// server is the HTTP handler.
type server struct {
	log    *slog.Logger
	handle Handler
	// readTimeout bounds the arrival of a request.
	readTimeout time.Duration
}

func newServer(ctx context.Context, s *server) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, s.serve)
	return &http.Server{
		// Not ReadTimeout: it goes on counting while the operation runs, and would end it.
		Handler: mux, ReadHeaderTimeout: s.readTimeout, IdleTimeout: s.readTimeout,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	deadline := http.NewResponseController(w)
	if err := deadline.SetReadDeadline(time.Now().Add(s.readTimeout)); err != nil {
		s.log.Debug("connection went away before its request", "error", err)
		return
	}
	req, err := decodeRequest(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = deadline.SetReadDeadline(time.Time{})
	}
	if err != nil {
		s.answer(w, http.StatusBadRequest, Response{Version: Version, Error: asCNIError(err)})
		return
	}
	timeout := time.Duration(min(req.TimeoutMillis, maxTimeout.Milliseconds())) * time.Millisecond
	ctx, cancel := context.WithTimeout(r.Context(), max(timeout-answerMargin, timeout/2))
	defer cancel()
	result, err := s.handle(ctx, req)
	if err != nil {
		s.answer(w, http.StatusInternalServerError, Response{Version: Version, Error: asCNIError(err)})
		return
	}
	s.answer(w, http.StatusOK, Response{Version: Version, Result: result})
}

// decodeRequest reads and validates a request; its errors are *types.Error.
func decodeRequest(body io.Reader) (*Request, error) {
	var req Request
	dec := json.NewDecoder(body)
	if err := dec.Decode(&req); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode request of godwit-cni", err.Error())
	}
	if req.Version != Version {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("godwit-cni speaks version %d, godwit-agent %d", req.Version, Version),
			"the agent installs its own godwit-cni when it starts: check its log for an install error")
	}
	if err := req.Validate(); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s request is not valid", req.Command), err.Error())
	}
	return &req, nil
}

func (s *server) answer(w http.ResponseWriter, status int, r Response) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(r); err != nil {
		s.log.Debug("caller went away before its answer", "error", err)
	}
}

func asCNIError(err error) *types.Error {
	var e *types.Error
	if errors.As(err, &e) {
		return e
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}

// Listen opens the socket: mode 0600 in a directory of mode 0700, and connections of anyone but root are closed. A socket that an earlier agent
// left is replaced; one that another agent listens on is an error.
func Listen(ctx context.Context, socket string) (net.Listener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of CNI socket: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs the execute bit
		return nil, fmt.Errorf("restrict directory of CNI socket: %w", err)
	}
	if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("another process listens on %s: is a second godwit-agent running on this node?", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale CNI socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	// The next agent may have made its own by the time this one closes.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict CNI socket: %w", err), l.Close())
	}
	return rootOnly{l}, nil
}

// rootOnly closes connections whose other end is not root's. File modes say so already; they can be changed by accident.
type rootOnly struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l rootOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && uid == 0 {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read credentials of peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("read credentials of peer: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("read credentials of peer: %w", credErr)
	}
	return cred.Uid, nil
}

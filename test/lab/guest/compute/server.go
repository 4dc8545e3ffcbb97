package compute

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// maxRequest bounds a request's body; they are a few hundred bytes.
const maxRequest = 1 << 20

// handler answers package guest's Client.
func (l *launcher) handler() http.Handler {
	mux := http.NewServeMux()
	for name, do := range map[string]func(ctx context.Context, body []byte) (any, error){
		"status": func(ctx context.Context, _ []byte) (any, error) { return l.report(ctx) },
		"plumb": func(ctx context.Context, body []byte) (any, error) {
			return decoded(ctx, body, l.plumb)
		},
		"start": func(ctx context.Context, body []byte) (any, error) {
			return decoded(ctx, body, func(ctx context.Context, d guest.Domain) (any, error) { return nil, l.start(ctx, d, nil) })
		},
		"incoming": func(ctx context.Context, body []byte) (any, error) {
			return decoded(ctx, body, func(ctx context.Context, r guest.IncomingRequest) (any, error) {
				return nil, l.start(ctx, r.Domain, &r.Incoming)
			})
		},
		"plug":   func(ctx context.Context, body []byte) (any, error) { return decoded(ctx, body, l.plug) },
		"unplug": func(ctx context.Context, body []byte) (any, error) { return decoded(ctx, body, l.unplug) },
		"migrate": func(ctx context.Context, body []byte) (any, error) {
			return decoded(ctx, body, func(ctx context.Context, m guest.Migration) (any, error) { return nil, l.migrate(ctx, m) })
		},
		"continue": plain(l.continueMigration),
		"postcopy": plain(func(ctx context.Context) error { return l.execute(ctx, "migrate-start-postcopy", nil) }),
		"cancel":   plain(func(ctx context.Context) error { return l.execute(ctx, "migrate_cancel", nil) }),
		"pause":    plain(func(ctx context.Context) error { return l.execute(ctx, "stop", nil) }),
		"resume":   plain(func(ctx context.Context) error { return l.execute(ctx, "cont", nil) }),
		"shutdown": plain(l.shutdown),
		"leave":    plain(l.leave),
		"kill":     plain(func(context.Context) error { return l.send(syscall.SIGKILL) }),
		"freeze":   plain(func(context.Context) error { return l.send(syscall.SIGSTOP) }),
		"thaw":     plain(func(context.Context) error { return l.send(syscall.SIGCONT) }),
	} {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { serve(w, r, do) })
	}
	mux.HandleFunc("GET /events", l.serveEvents)
	mux.HandleFunc("GET /console", l.serveConsole)
	return mux
}

func plain(do func(context.Context) error) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, _ []byte) (any, error) { return nil, do(ctx) }
}

func decoded[In, Out any](ctx context.Context, body []byte, do func(context.Context, In) (Out, error)) (any, error) {
	var in In
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	return do(ctx, in)
}

func serve(w http.ResponseWriter, r *http.Request, do func(context.Context, []byte) (any, error)) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	var answer any
	if err == nil {
		answer, err = do(r.Context(), body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client is gone
}

func (l *launcher) serveEvents(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.Atoi(r.URL.Query().Get("after"))
	if err != nil {
		http.Error(w, "after: want the number of an event, or 0", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		if flush.Flush() != nil {
			return // the client is gone
		}
		events, err := l.journal.next(r.Context(), after)
		if err != nil {
			return
		}
		for _, e := range events {
			if enc.Encode(e) != nil {
				return
			}
			after = e.Seq
		}
	}
}

func (l *launcher) serveConsole(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, err = fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", guest.ConsoleProtocol)
	if err != nil || rw.Flush() != nil {
		_ = conn.Close()
		return
	}
	l.console.attach(buffered{conn, rw})
}

// buffered reads first what HTTP's server has read ahead.
type buffered struct {
	net.Conn
	ahead io.Reader
}

// Read implements io.Reader.
func (b buffered) Read(p []byte) (int, error) { return b.ahead.Read(p) }

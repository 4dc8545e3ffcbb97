package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/godwit-cni/godwit/pkg/wire"
)

// shutdownTimeout is how long requests in progress may take to undo themselves once the agent is told to end: less than the
// ten seconds that its pod has.
const shutdownTimeout = 7 * time.Second

// handle carries one CNI request out.
func (a *attacher) handle(ctx context.Context, req *wire.Request) (*wire.Result, error) {
	start := time.Now()
	res, err := a.dispatch(ctx, req)
	a.metrics.request(string(req.Command), err, time.Since(start))
	if err != nil && req.Command != wire.Status { // the runtime asks for STATUS every few seconds; what changes is logged by the node's loop
		// The runtime shows the error too, but on the kubelet's terms; here it stands beside the node's other troubles.
		a.log.Warn("CNI request failed", "command", req.Command, "pod", req.Pod.String(), "container", req.ContainerID, "ifname", req.IfName, "error", err)
	}
	return res, err
}

func (a *attacher) dispatch(ctx context.Context, req *wire.Request) (*wire.Result, error) {
	switch req.Command {
	case wire.Add:
		return a.add(ctx, req)
	case wire.Del:
		return nil, a.del(ctx, req)
	case wire.Check:
		return nil, a.check(ctx, req)
	case wire.GC:
		return nil, a.gc(ctx, req)
	case wire.Status:
		return nil, a.status(ctx)
	default:
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("unknown command %q", req.Command), "")
	}
}

// status says what keeps the node from attaching pods. Of what can go away later, Open vSwitch's database is asked; the gateway's state is kept by
// the node's loop.
func (a *attacher) status(ctx context.Context) error {
	err := a.ready.err()
	if err == nil {
		err = a.node.db.Ping(ctx)
	}
	if err != nil {
		return types.NewError(wire.CodeUnavailable, "Godwit cannot attach pods on this node now", err.Error())
	}
	return nil
}

// serve runs an HTTP server until ctx ends, then lets requests in progress end.
func serve(ctx context.Context, log *slog.Logger, srv *http.Server, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		stopped <- srv.Shutdown(ctx)
	})
	err := srv.Serve(l)
	if stop() { // it was not ctx that ended it
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	if err := <-stopped; err != nil {
		log.Warn("requests in progress were cut off", "address", l.Addr(), "error", errors.Join(err, srv.Close()))
	}
	return nil
}

// Bounds of the health server, which pods reach: one that opens connections and says or reads nothing must not keep the kubelet's probes out.
const (
	healthTimeout     = 10 * time.Second
	healthIdleTimeout = 30 * time.Second
	healthHeaderBytes = 16 << 10
	// scrapes is how many are answered at once.
	scrapes = 2
)

// healthServer serves metrics and probes. Healthy is the process; ready is the node. A sample that cannot be told costs itself alone, and the log says so: alerts are made of the others.
func healthServer(ready *readiness, reg Registry, log *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapes, Timeout: healthTimeout / 2, ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), Registry: reg,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready.err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return boundedServer(mux, log)
}

// boundedServer is one that pods reach too.
func boundedServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: shutdownTimeout, ReadTimeout: healthTimeout, WriteTimeout: healthTimeout, IdleTimeout: healthIdleTimeout,
		MaxHeaderBytes: healthHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

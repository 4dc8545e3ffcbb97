package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/service"
)

// listenRetry is when a health check's port that another process has is tried again.
const listenRetry = 30 * time.Second

// healthChecks answer on the healthCheckNodePorts of Services whether the node has endpoints of them, as kube-proxy does (pkg/proxy/healthcheck in
// kubernetes/kubernetes): load balancers send nothing to a node that says no. One loop uses them.
type healthChecks struct {
	log *slog.Logger
	// listen opens a port in the node's network.
	listen listener
	// healthy says whether the node's rules are as they should be.
	healthy *atomic.Bool
	group   *errgroup.Group
	open    map[uint16]*healthCheck
	// failed is when a port was tried last.
	failed map[uint16]time.Time
}

// listener opens a TCP port, of which address is ":PORT".
type listener func(ctx context.Context, address string) (net.Listener, error)

// healthCheck is one port.
type healthCheck struct {
	key   service.Key
	local atomic.Int64
	stop  context.CancelFunc
	// ended is closed when nobody serves any more.
	ended chan struct{}
}

func newHealthChecks(log *slog.Logger, healthy *atomic.Bool, group *errgroup.Group, listen listener) *healthChecks {
	return &healthChecks{log: log, listen: listen, healthy: healthy, group: group, open: map[uint16]*healthCheck{}, failed: map[uint16]time.Time{}}
}

// healthTarget is what one port is to say.
type healthTarget struct {
	key   service.Key
	local int
}

// sync opens and closes ports so that those of want are open. again is when it is to be called once more at the latest; 0 if there is no need.
func (h *healthChecks) sync(ctx context.Context, want map[uint16]healthTarget) (again time.Duration) {
	for port, check := range h.open {
		if to, ok := want[port]; ok && to.key == check.key && !check.over() {
			continue
		}
		check.stop()
		<-check.ended
		delete(h.open, port)
	}
	for port := range h.failed {
		if _, ok := want[port]; !ok {
			delete(h.failed, port)
		}
	}
	for port, to := range want {
		if h.open[port] == nil && time.Since(h.failed[port]) >= listenRetry {
			h.start(ctx, port, to.key)
		}
		if check := h.open[port]; check != nil {
			check.local.Store(int64(to.local))
		} else {
			again = listenRetry
		}
	}
	return again
}

func (c *healthCheck) over() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

func (h *healthChecks) start(ctx context.Context, port uint16, key service.Key) {
	l, err := h.listen(ctx, ":"+strconv.Itoa(int(port)))
	if err != nil {
		if h.failed[port].IsZero() {
			h.log.Warn("the health check of a Service is not answered, so that load balancers may leave this node out: end the process that has the port, or make the Service anew to get another",
				"service", key, "port", port, "error", err)
		}
		h.failed[port] = time.Now()
		return
	}
	delete(h.failed, port)
	ctx, stop := context.WithCancel(ctx)
	check := &healthCheck{key: key, stop: stop, ended: make(chan struct{})}
	h.open[port] = check
	h.group.Go(func() error {
		defer close(check.ended)
		defer stop()
		srv := h.server(check)
		defer context.AfterFunc(ctx, func() { _ = srv.Close() })() // nobody waits for a client that reads nothing
		if err := srv.Serve(limit(l, h.log)); ctx.Err() == nil {
			h.log.Warn("the health check of a Service ended; it is begun again", "service", key, "port", port, "error", err)
		}
		return nil
	})
}

// healthAnswer is what a health check says, as kube-proxy writes it.
type healthAnswer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int64 `json:"localEndpoints"`
	ServiceProxyHealthy bool  `json:"serviceProxyHealthy"`
}

func (h *healthChecks) server(check *healthCheck) *http.Server {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer := healthAnswer{LocalEndpoints: check.local.Load(), ServiceProxyHealthy: h.healthy.Load()}
		answer.Service.Namespace, answer.Service.Name = check.key.Namespace, check.key.Name
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(answer.LocalEndpoints, 10))
		if answer.LocalEndpoints == 0 || !answer.ServiceProxyHealthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer) // who asked has gone
	})
	return boundedServer(handler, h.log)
}

// listenOn opens a TCP port on a thread of the node's network.
func listenOn(do func(func() error) error) listener {
	return func(ctx context.Context, address string) (l net.Listener, err error) {
		err = do(func() (err error) {
			l, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		return l, nil
	}
}

// targets are the health checks' ports. Of two Services that ask for one the first has it, by name; the API server gives each out once.
func (s *services) targets() map[uint16]healthTarget {
	out := map[uint16]healthTarget{}
	for _, key := range slices.SortedFunc(maps.Keys(s.checked), func(a, b service.Key) int { return strings.Compare(a.String(), b.String()) }) {
		svc, ok := s.index.Service(key)
		if _, taken := out[svc.HealthCheckPort]; ok && !taken {
			out[svc.HealthCheckPort] = healthTarget{key: key, local: svc.LocalEndpoints(s.node)}
		}
	}
	return out
}

package controller

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// waitingRead bounds reading a probe's request.
const waitingRead = 5 * time.Second

// waiting answers the kubelet while the databases cannot be reached, until the manager does: alive, not ready, and why. Without it the kubelet would kill the controller again and again, and
// would let it wait for up to five minutes when the databases are back.
type waiting struct {
	server  *http.Server
	serving sync.WaitGroup

	mu  sync.Mutex
	why error
}

// newWaiting answers at once on Config.HealthAddress, of which "0" is none.
func newWaiting(ctx context.Context, c Config) (*waiting, error) {
	address := c.HealthAddress
	w := &waiting{why: fmt.Errorf("no answer from %s yet", strings.Join(slices.Concat(c.NBEndpoints, c.SBEndpoints), ", "))}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusOK) })
	mux.HandleFunc("/readyz", w.readyz)
	w.server = &http.Server{Handler: mux, ReadTimeout: waitingRead}
	if address == "" || address == "0" {
		return w, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--health-address %s: %w", address, err)
	}
	w.serving.Go(func() { _ = w.server.Serve(l) }) // ends with close
	return w, nil
}

func (w *waiting) readyz(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	http.Error(rw, "OVN's databases are not reachable yet: "+w.why.Error(), http.StatusServiceUnavailable)
}

// tell notes why the last attempt failed.
func (w *waiting) tell(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.why = why
}

// close leaves the address to the manager. A probe that is being answered meanwhile is cut off: the kubelet asks again.
func (w *waiting) close() {
	_ = w.server.Close()
	w.serving.Wait()
}

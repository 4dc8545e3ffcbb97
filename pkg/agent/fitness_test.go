package agent

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The agent's own metrics are read as it writes them.
func TestHandsOver(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg, func() bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{})))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	if HandsOver(t.Context(), address) {
		t.Error("it does not hand over")
	}
	m.handingOff.Set(1)
	for _, a := range []string{address, ":" + port} {
		if !HandsOver(t.Context(), a) {
			t.Errorf("%s: it hands over", a)
		}
	}
	server.Close()
	if HandsOver(t.Context(), address) {
		t.Error("nobody says that it hands over")
	}
}

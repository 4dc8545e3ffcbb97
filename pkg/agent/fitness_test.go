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
	if on, err := HandsOver(t.Context(), address); on || err != nil {
		t.Errorf("it does not hand over: %t, %v", on, err)
	}
	m.handingOff.Set(1)
	for _, a := range []string{address, ":" + port} {
		if on, err := HandsOver(t.Context(), a); !on || err != nil {
			t.Errorf("%s: it hands over: %t, %v", a, on, err)
		}
	}
	if on, err := HandsOver(t.Context(), address+"/elsewhere"); on || err == nil {
		t.Errorf("an address that is none: %t, %v", on, err)
	}
	server.Close()
	if on, err := HandsOver(t.Context(), address); on || err == nil || !strings.Contains(err.Error(), "--metrics-address "+address) {
		t.Errorf("nobody says that it hands over: %t, %v", on, err)
	}
}

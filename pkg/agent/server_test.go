package agent

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// twice is a Collector that tells one sample two times.
type twice struct{}

func (twice) Describe(chan<- *prometheus.Desc) {}

func (twice) Collect(to chan<- prometheus.Metric) {
	for range 2 {
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc("godwit_twice", "Told twice.", nil, nil), prometheus.GaugeValue, 1)
	}
}

// What of the metrics cannot be told does not take the others with it, and is not kept quiet.
func TestMetricsThatCannotBeTold(t *testing.T) {
	reg := prometheus.NewRegistry()
	other := prometheus.NewGauge(prometheus.GaugeOpts{Name: "godwit_other", Help: "Another."})
	reg.MustRegister(twice{}, other)
	var log bytes.Buffer
	srv := healthServer(newReadiness(), reg, slog.New(slog.NewTextHandler(&log, nil)))
	text := ""
	for range 2 { // what is counted in one scrape the next one has
		got := httptest.NewRecorder()
		srv.Handler.ServeHTTP(got, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		if text = got.Body.String(); got.Code != http.StatusOK {
			t.Fatalf("status %d: %s", got.Code, text)
		}
	}
	if !strings.Contains(text, "godwit_other 0") || !strings.Contains(text, `promhttp_metric_handler_errors_total{cause="gathering"} `) || strings.Contains(text, `{cause="gathering"} 0`) {
		t.Errorf("it tells\n%s", text)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "godwit_twice") {
		t.Errorf("the log says %q", log.String())
	}
}

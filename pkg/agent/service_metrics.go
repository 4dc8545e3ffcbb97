package agent

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// serviceMetrics are those of Services, durations in seconds.
type serviceMetrics struct {
	services, frontends prometheus.Gauge
	seconds             prometheus.Histogram
	failures            prometheus.Counter
}

func newServiceMetrics(reg prometheus.Registerer) (*serviceMetrics, error) {
	m := &serviceMetrics{
		services:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "godwit_agent_services", Help: "Services that the node serves."}),
		frontends: prometheus.NewGauge(prometheus.GaugeOpts{Name: "godwit_agent_service_frontends", Help: "Addresses and ports of Services that the node serves, node ports by family."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "godwit_agent_service_write_seconds", Help: "Time that it took to write changes of Services to nftables, several changes at once.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "godwit_agent_service_failures_total", Help: "Writes of Services to nftables that failed; the agent's log says why. They are tried again.",
		}),
	}
	for _, c := range []prometheus.Collector{m.services, m.frontends, m.seconds, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of Services: %w", err)
		}
	}
	return m, nil
}

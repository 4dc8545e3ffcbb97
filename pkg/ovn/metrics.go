package ovn

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	transactions prometheus.Histogram
	batched      prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		transactions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "godwit_nb_transaction_duration_seconds", Help: "Time from sending a northbound transaction to its reply.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		batched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "godwit_nb_requests_total", Help: "Requests committed to the northbound database; more than transactions when requests were batched.",
		}),
	}
	r.MustRegister(m.transactions, m.batched)
	return m
}

func (m *metrics) observe(requests int, d time.Duration) {
	m.transactions.Observe(d.Seconds())
	m.batched.Add(float64(requests))
}

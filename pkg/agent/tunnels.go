package agent

import (
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// tunnels tells how many tunnels to other nodes ovn-controller has made.
type tunnels struct {
	count   func() (all, failed int, err error)
	log     *slog.Logger
	failing atomic.Bool
}

func tunnelsDesc() *prometheus.Desc {
	return prometheus.NewDesc("godwit_agent_tunnels", "Tunnels to other nodes: those that ovs-vswitchd has made (made), and those that it could not make (failed).", []string{"state"}, nil)
}

// Describe implements prometheus.Collector.
func (t *tunnels) Describe(to chan<- *prometheus.Desc) { to <- tunnelsDesc() }

// Collect implements prometheus.Collector; see traffic.Collect.
func (t *tunnels) Collect(to chan<- prometheus.Metric) {
	all, failed, err := t.count()
	if failing := err != nil; t.failing.Swap(failing) != failing && failing {
		t.log.Warn("the node's tunnels cannot be told", "error", err)
	}
	if err != nil {
		return
	}
	to <- prometheus.MustNewConstMetric(tunnelsDesc(), prometheus.GaugeValue, float64(all-failed), "made")
	to <- prometheus.MustNewConstMetric(tunnelsDesc(), prometheus.GaugeValue, float64(failed), "failed")
}

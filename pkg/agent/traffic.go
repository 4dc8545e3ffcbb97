package agent

import (
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// traffic tells what the VMs of the node sent and received, by VM and network. While a VM migrates two launchers have a link of the same port; only the agent of the
// node that carries the VM tells of it, so that there is one series for each NIC. It reads when it is scraped: no loop runs for it.
type traffic struct {
	ports      func() ([]ovs.PortStatus, error)
	counters   func() (map[string]netdev.Counters, error)
	migrations migrations
	log        *slog.Logger
	failing    atomic.Bool
}

// trafficCounter is a metric and what it tells of a link. Transmit and receive are the VM's view.
type trafficCounter struct {
	desc *prometheus.Desc
	of   func(netdev.Counters) uint64
}

func trafficCounters() []trafficCounter {
	labels := []string{"namespace", "vm", "network"}
	return []trafficCounter{
		{prometheus.NewDesc("godwit_vm_nic_transmit_bytes_total", "Bytes that the VM sent.", labels, nil), func(c netdev.Counters) uint64 { return c.RXBytes }},
		{prometheus.NewDesc("godwit_vm_nic_transmit_packets_total", "Packets that the VM sent.", labels, nil), func(c netdev.Counters) uint64 { return c.RXPackets }},
		{prometheus.NewDesc("godwit_vm_nic_transmit_drops_total", "Packets of the VM that its node dropped before they were looked at.", labels, nil), func(c netdev.Counters) uint64 { return c.RXDropped }},
		{prometheus.NewDesc("godwit_vm_nic_transmit_errors_total", "Packets of the VM that its node could not take.", labels, nil), func(c netdev.Counters) uint64 { return c.RXErrors }},
		{prometheus.NewDesc("godwit_vm_nic_receive_bytes_total", "Bytes that the VM was sent.", labels, nil), func(c netdev.Counters) uint64 { return c.TXBytes }},
		{prometheus.NewDesc("godwit_vm_nic_receive_packets_total", "Packets that the VM was sent.", labels, nil), func(c netdev.Counters) uint64 { return c.TXPackets }},
		{prometheus.NewDesc("godwit_vm_nic_receive_drops_total", "Packets to the VM that its link dropped.", labels, nil), func(c netdev.Counters) uint64 { return c.TXDropped }},
		{prometheus.NewDesc("godwit_vm_nic_receive_errors_total", "Packets to the VM that its link could not take.", labels, nil), func(c netdev.Counters) uint64 { return c.TXErrors }},
	}
}

// Describe implements prometheus.Collector.
func (t *traffic) Describe(to chan<- *prometheus.Desc) {
	for _, c := range trafficCounters() {
		to <- c.desc
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out, and the log says so once: a scrape that failed for it would lose all other metrics too.
func (t *traffic) Collect(to chan<- prometheus.Metric) {
	ports, counters, err := t.read()
	if failing := err != nil; t.failing.Swap(failing) != failing && failing {
		t.log.Warn("the traffic of VMs cannot be told", "error", err)
	}
	for i := range ports {
		p := &ports[i]
		namespace, vm, network, ok := ident.ParseVMPort(p.ID)
		have, counted := counters[p.Name]
		if !ok || !counted || !t.carries(p.Owner.Pod) {
			continue
		}
		for _, c := range trafficCounters() {
			to <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.of(have)), namespace, vm, network)
		}
	}
}

func (t *traffic) read() ([]ovs.PortStatus, map[string]netdev.Counters, error) {
	ports, err := t.ports()
	if err != nil || len(ports) == 0 {
		return nil, nil, err
	}
	counters, err := t.counters()
	return ports, counters, err
}

// carries says whether the VM runs in a launcher of this node ("namespace/name"), as far as its migrations tell: the source does until the target is activated, and from
// then on the target.
func (t *traffic) carries(launcher string) bool {
	for _, pm := range t.migrations.all(sideTarget) {
		if pm.Namespace+"/"+pm.Spec.Target.Pod.Name == launcher && !arrived(pm) {
			return false
		}
	}
	for _, pm := range t.migrations.all(sideSource) {
		if pm.Namespace+"/"+pm.Spec.Source.Pod.Name == launcher && arrived(pm) {
			return false
		}
	}
	return true
}

// arrived: the VM is at the migration's target. One that is rolled back never was, whatever was seen of it, unless its ports have become the target's since: a migration that vanished may arrive all the same.
func arrived(pm *v1alpha1.PortMigration) bool {
	back, rolledBack := pm.Status.Stage(v1alpha1.StageRolledBack)
	over, committed := pm.Status.Stage(v1alpha1.StageCommitted)
	switch {
	case pm.Status.Result == v1alpha1.MigrationSucceeded, rolledBack && committed && over.After(back):
		return true
	case pm.Status.Result == v1alpha1.MigrationFailed, rolledBack:
		return false
	}
	return committed || reached(pm, v1alpha1.StageActivated) || reached(pm, v1alpha1.StageReady)
}

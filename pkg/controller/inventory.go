package controller

// What the leader tells of the cluster when it is scraped.
// In:   Subnets, Ports, PortMigrations, Nodes and VMIs of the cache, the addresses in use, our LogicalSwitchPorts, the Chassis.
// Out:  metrics. Nothing is kept between scrapes: a number that is wrong once is right the next time.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// scrapeTimeout bounds a look at the caches.
const scrapeTimeout = 5 * time.Second

// The databases, as godwit_ovn_connected names them.
const (
	northbound = "northbound"
	southbound = "southbound"
)

// inventory is a prometheus.Collector.
type inventory struct {
	api     client.Reader
	nb      *ovn.NB
	sb      *ovn.SB
	alloc   *allocations
	virt    *kubevirt
	now     func() time.Time
	log     *slog.Logger
	failing atomic.Bool
	// ctx is the leader's, which a scrape has none of.
	ctx context.Context //nolint:containedctx // a Collector is called without one
}

// gauge is a number to tell, with the values of its labels.
type gauge struct {
	of     *prometheus.Desc
	value  float64
	labels []string
}

func count(of *prometheus.Desc, n int, labels ...string) gauge { return gauge{of, float64(n), labels} }

// inventoryMetrics are what an inventory tells.
type inventoryMetrics struct {
	connected, addresses, chassis, missing *prometheus.Desc
	ports, state, adrift, stale            *prometheus.Desc
	moving, longest                        *prometheus.Desc
	started, ended, interruption           *prometheus.Desc
}

func newInventoryMetrics() inventoryMetrics {
	return inventoryMetrics{
		connected:    prometheus.NewDesc("godwit_ovn_connected", "1 if the controller reaches the OVN database, which must have a leader if it is clustered, else 0.", []string{"database"}, nil),
		addresses:    prometheus.NewDesc("godwit_subnet_addresses", "Addresses of a Subnet that are used and that can still be given out, of its scarcer family.", []string{"subnet", "state"}, nil),
		ports:        prometheus.NewDesc("godwit_ports", "Ports of VMs, by phase.", []string{"phase"}, nil),
		state:        prometheus.NewDesc("godwit_port_state", "1 for each NIC of a VM, with the phase and node of the Port that has it as they are now.", []string{"namespace", "vm", "network", "node", "phase"}, nil),
		started:      prometheus.NewDesc("godwit_vm_migration_start_timestamp_seconds", "When the VM's last live migration began to move its ports, in Unix time.", []string{"namespace", "vm"}, nil),
		ended:        prometheus.NewDesc("godwit_vm_migration_end_timestamp_seconds", "When it was over, in Unix time; absent as long as it is not.", []string{"namespace", "vm"}, nil),
		interruption: prometheus.NewDesc("godwit_vm_migration_interruption_seconds", "For how long the network heard nothing of the VM in it, at most; absent if that is not known.", []string{"namespace", "vm"}, nil),
		adrift:       prometheus.NewDesc("godwit_ports_without_chassis", "Ports of VMs that run and that no chassis carries.", nil, nil),
		moving:       prometheus.NewDesc("godwit_migrations_in_progress", "Live migrations whose ports are on their way, by phase.", []string{"phase"}, nil),
		longest:      prometheus.NewDesc("godwit_migrations_in_progress_longest_seconds", "For how long the longest of them has been on its way, 0 if there is none.", nil, nil),
		stale:        prometheus.NewDesc("godwit_stale_pins", "Ports of VMs that ask for two chassis and have no migration.", nil, nil),
		chassis:      prometheus.NewDesc("godwit_chassis", "Chassis that the southbound database knows.", nil, nil),
		missing:      prometheus.NewDesc("godwit_nodes_without_chassis", "Nodes that are Ready and have no Chassis: no pod of theirs is in the network.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (i *inventory) Describe(to chan<- *prometheus.Desc) {
	m := newInventoryMetrics()
	for _, x := range []*prometheus.Desc{
		m.connected, m.addresses, m.chassis, m.missing, m.ports, m.state, m.adrift, m.stale, m.moving, m.longest, m.started, m.ended, m.interruption,
	} {
		to <- x
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out, and the log says so once: a scrape that failed for it would lose all other metrics too.
func (i *inventory) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(i.ctx, scrapeTimeout)
	defer cancel()
	gauges, err := i.take(ctx)
	if failing := err != nil; i.failing.Swap(failing) != failing && failing {
		i.log.Warn("not all metrics of the cluster can be told", "error", err)
	}
	for _, g := range gauges {
		to <- prometheus.MustNewConstMetric(g.of, prometheus.GaugeValue, g.value, g.labels...)
	}
}

// take reads everything anew. What is of a database that cannot be reached is left out: its copy answers nobody before it is whole again, and that it cannot be reached would be told too late, or never.
func (i *inventory) take(ctx context.Context) ([]gauge, error) {
	m := newInventoryMetrics()
	reached := map[string]bool{northbound: i.nb.Connected(), southbound: i.sb.Connected()}
	var out []gauge
	var errs []error
	add := func(more []gauge, err error) {
		out = append(out, more...)
		errs = append(errs, err)
	}
	for database, is := range reached {
		n := 0
		if is {
			n = 1
		}
		out = append(out, count(m.connected, n, database))
	}
	add(i.subnets(ctx, m))
	if reached[northbound] && reached[southbound] {
		add(i.network(ctx, m))
	}
	if reached[southbound] {
		add(i.nodes(ctx, m))
	}
	return out, errors.Join(errs...)
}

func (i *inventory) subnets(ctx context.Context, m inventoryMetrics) ([]gauge, error) {
	var all v1alpha1.SubnetList
	if err := i.api.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Subnets: %w", err)
	}
	var out []gauge
	for k := range all.Items {
		name := all.Items[k].Name
		used, available := i.alloc.usage(name)
		out = append(out, count(m.addresses, int(used), name, "used"), count(m.addresses, int(available), name, "available"))
	}
	return out, nil
}

// network is about Ports, their rows, and the migrations that move them.
func (i *inventory) network(ctx context.Context, m inventoryMetrics) ([]gauge, error) {
	var ports v1alpha1.PortList
	var records v1alpha1.PortMigrationList
	if err := errors.Join(i.api.List(ctx, &ports, client.UnsafeDisableDeepCopy), i.api.List(ctx, &records, client.UnsafeDisableDeepCopy)); err != nil {
		return nil, fmt.Errorf("list Ports and PortMigrations: %w", err)
	}
	running, err := i.runningVMs(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := i.nb.Ports(ctx)
	if err != nil {
		return nil, err
	}
	byName := make(map[ident.PortName]*nbdb.LogicalSwitchPort, len(rows))
	for _, row := range rows {
		byName[ident.PortName(row.Name)] = row
	}
	carried, err := i.carried(ctx, ports.Items, running)
	if err != nil {
		return nil, err
	}
	return slices.Concat(countPorts(m, ports.Items, byName, running, carried), countMigrations(m, records.Items, byName, i.now()), lastMigrations(m, records.Items)), nil
}

// runningVMs are the VMIs that say that their VM runs.
func (i *inventory) runningVMs(ctx context.Context) (map[client.ObjectKey]bool, error) {
	running := map[client.ObjectKey]bool{}
	if !i.virt.ready.Load() {
		return running, nil
	}
	var vmis kubevirtv1.VirtualMachineInstanceList
	if err := i.api.List(ctx, &vmis, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list VirtualMachineInstances: %w", err)
	}
	for k := range vmis.Items {
		running[client.ObjectKeyFromObject(&vmis.Items[k])] = vmis.Items[k].Status.Phase == kubevirtv1.Running
	}
	return running, nil
}

// carried are the ports of VMs that run which some chassis has.
func (i *inventory) carried(ctx context.Context, ports []v1alpha1.Port, running map[client.ObjectKey]bool) (map[ident.PortName]bool, error) {
	carried := map[ident.PortName]bool{}
	for k := range ports {
		if !running[vmOf(&ports[k])] {
			continue
		}
		name := rowName(&ports[k])
		binding, err := i.sb.Binding(ctx, name)
		if err != nil {
			return nil, err
		}
		carried[name] = binding != nil && binding.Chassis != nil
	}
	return carried, nil
}

// countPorts is about the Ports of VMs, and of those that are for one interface about the one that has it, or gets it: a sample that is told twice is refused. One that was attached keeps its phase while its chassis
// changes: whether some chassis has it is asked of its binding.
func countPorts(m inventoryMetrics, ports []v1alpha1.Port, rows map[ident.PortName]*nbdb.LogicalSwitchPort, running map[client.ObjectKey]bool, carried map[ident.PortName]bool) []gauge {
	phases, adrift := map[v1alpha1.PortPhase]int{}, 0
	for k := range ports {
		phases[ports[k].Status.Phase]++
	}
	var out []gauge
	for name, p := range holders(ports, rows) {
		if lost := p.Status.Phase != v1alpha1.PortReserved && !carried[name]; running[vmOf(p)] && (lost || p.Status.Phase == v1alpha1.PortBound) {
			adrift++
		}
		if vm := vmOf(p); vm.Name != "" {
			out = append(out, count(m.state, 1, p.Namespace, vm.Name, p.Spec.Target.Network, p.Status.Node, string(p.Status.Phase)))
		}
	}
	out = append(out, count(m.adrift, adrift))
	for _, phase := range []v1alpha1.PortPhase{v1alpha1.PortReserved, v1alpha1.PortBound, v1alpha1.PortAttached, v1alpha1.PortMigrating} {
		out = append(out, count(m.ports, phases[phase], string(phase)))
	}
	return out
}

// countMigrations is about the PortMigrations on record, and the chassis that each row asks for.
func countMigrations(m inventoryMetrics, records []v1alpha1.PortMigration, rows map[ident.PortName]*nbdb.LogicalSwitchPort, now time.Time) []gauge {
	phases, moved := map[migration.Phase]int{}, map[ident.PortName]bool{}
	var longest time.Duration
	for k := range records {
		pm := &records[k]
		if pm.Status.Over() {
			continue
		}
		phases[migration.Phase(pm.Status.Phase)]++
		longest = max(longest, now.Sub(began(*pm)))
		for _, p := range pm.Spec.Ports {
			moved[ident.PortName(p.Name)] = true
		}
	}
	stale := 0
	for name, row := range rows {
		if strings.Contains(row.Options[ident.OptionRequestedChassis], ",") && !moved[name] {
			stale++
		}
	}
	out := []gauge{count(m.stale, stale), {of: m.longest, value: longest.Seconds()}}
	for _, phase := range []migration.Phase{migration.Prepared, migration.Activated, migration.PostCopy, migration.Committed, migration.RolledBack} {
		out = append(out, count(m.moving, phases[phase], string(phase)))
	}
	return out
}

// lastMigrations tells when each VM moved last, and how that was for its network.
func lastMigrations(m inventoryMetrics, records []v1alpha1.PortMigration) []gauge {
	last := map[client.ObjectKey]*v1alpha1.PortMigration{}
	for k := range records {
		pm := &records[k]
		vm := vmOf(pm)
		if known := last[vm]; known == nil || began(*pm).After(began(*known)) {
			last[vm] = pm
		}
	}
	var out []gauge
	for vm, pm := range last {
		labels := []string{vm.Namespace, vm.Name}
		out = append(out, gauge{m.started, unix(began(*pm)), labels})
		if at, ok := pm.Status.Stage(v1alpha1.StageCompleted); ok {
			out = append(out, gauge{m.ended, unix(at), labels})
		}
		if known := pm.Status.Interruption; known != nil {
			if ms, err := strconv.ParseFloat(known.Milliseconds, 64); err == nil {
				out = append(out, gauge{m.interruption, ms / 1000, labels})
			}
		}
	}
	return out
}

func unix(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func (i *inventory) nodes(ctx context.Context, m inventoryMetrics) ([]gauge, error) {
	var nodes corev1.NodeList
	if err := i.api.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	chassis, err := i.sb.Chassis(ctx)
	if err != nil {
		return nil, err
	}
	known := map[ident.ChassisName]bool{}
	for _, name := range chassis {
		known[name] = true
	}
	missing := 0
	for k := range nodes.Items {
		if n := &nodes.Items[k]; nodeReady(n) && !known[ident.ChassisName(n.Name)] {
			missing++
		}
	}
	return []gauge{count(m.chassis, len(known)), count(m.missing, missing)}, nil
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// tellInventory registers the inventory for as long as this replica leads.
func tellInventory(ctx context.Context, r prometheus.Registerer, i *inventory) error {
	i.ctx = ctx
	if err := r.Register(i); err != nil {
		return fmt.Errorf("register the metrics of the cluster: %w", err)
	}
	<-ctx.Done()
	r.Unregister(i)
	return nil
}

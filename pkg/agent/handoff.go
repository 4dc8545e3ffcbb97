package agent

// Hand-over of connections: what connection tracking knows of a VM's connections moves with it, so that those through Services and NAT, and those that policies would not admit anew, go on on the target.
// In:   PortMigrations from and to this node; the ports' connection tracking zones and those that ports share, from the bridge's external_ids; the kernel's entries; what agents of other nodes say.
// Out:  entries in a target's zones; what is said to the agents of other nodes; PortMigration status.source.connections or status.target.connections.

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// handoffLimit is how many entries of a VM's are moved. More than these would need more memory than an agent has (some 200 bytes each, on either side) and more time than a migration.
const handoffLimit = 1 << 16

// entries is the node's connection tracking; *conntrack.Table implements it.
type entries interface {
	Dump(ctx context.Context, q conntrack.Query) (conntrack.Dumped, error)
	Upsert(ctx context.Context, zone conntrack.Zone, entries []conntrack.Entry) (conntrack.Result, error)
	Remove(ctx context.Context, zone conntrack.Zone, entries []conntrack.Entry) (removed int, err error)
	Close() error
}

// What becomes of entries: on the target moved, replaced (of those moved), renewed, refused; on the source left.
const (
	handoffMoved    = "moved"
	handoffReplaced = "replaced"
	handoffRenewed  = "renewed"
	handoffRefused  = "refused"
	handoffLeft     = "left"
)

func handoffResults() []string {
	return []string{handoffMoved, handoffReplaced, handoffRenewed, handoffRefused, handoffLeft}
}

// handoff reads and writes connection tracking for migrations from and to this node.
type handoff struct {
	log     *slog.Logger
	inputs  *inputs
	node    *nodeState
	entries *prometheus.CounterVec
	open    func() (entries, error)
	limit   int
}

// addHandoff: without it connections live as far as policies and Services let them begin in the middle.
func (a *Agent) addHandoff(host netdev.Host) {
	off := ""
	switch {
	case !a.cfg.Handoff:
		off = "--handoff=false"
	case a.switchover == nil:
		off = "agents do not speak to one another"
	case a.state.datapath != ovs.DatapathSystem:
		off = "Open vSwitch's userspace datapath has no way to put entries into its connection tracking"
	}
	if off != "" {
		a.log.Info("connections are not handed over when their VM moves", "reason", off)
		return
	}
	a.observer.metrics.handingOff.Set(1)
	a.switchover.handoff = &handoff{
		log: a.log, inputs: a.inputs, node: a.state, entries: a.observer.metrics.handoffEntries, limit: handoffLimit,
		open: func() (t entries, err error) {
			err = host.Do(func() error {
				table, err := conntrack.Open()
				if err == nil {
					t = table
				}
				return err
			})
			return t, err
		},
	}
}

// zones are those of the node, by OVN's names.
func (h *handoff) zones(ctx context.Context) (map[string]conntrack.Zone, error) {
	db, err := h.node.database(ctx)
	if err != nil {
		return nil, err
	}
	read, err := db.Zones(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]conntrack.Zone, len(read))
	for name, zone := range read {
		out[name] = conntrack.Zone(zone)
	}
	return out, nil
}

// shared says whether a zone is not one port's: those of hairpins, which a switch has, and of what routers translate.
func shared(zone string) bool {
	return strings.HasSuffix(zone, "_snat") || strings.HasSuffix(zone, "_dnat")
}

// addresses are the VM's, as its launcher's identity has them: no other's connections are moved.
func (h *handoff) addresses(l launcher) ([]netip.Addr, error) {
	pod := h.inputs.pod(l.key.String())
	if pod == nil || pod.UID != l.uid {
		return nil, fmt.Errorf("pod %s is not known here", l.key)
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", l.key, err)
	}
	ips := slices.Clone(id.IPs)
	for _, n := range id.NICs {
		ips = append(ips, n.IPs...)
	}
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		out = append(out, ip.Addr())
	}
	return out, nil
}

// of chooses what belongs to a VM.
func of(addresses []netip.Addr) func(conntrack.Entry) bool {
	return func(e conntrack.Entry) bool { return e.Of(addresses...) }
}

// mergeConnections adds what is known now to what was reported before, by an agent that was restarted since. What is left, and refused, may become less; an agent that begins anew knows of nothing that is left before it
// has looked, and what it sees after the end is no news.
func mergeConnections(before, now *v1alpha1.Connections) *v1alpha1.Connections {
	if before == nil || now == nil {
		return cmp.Or(now, before)
	}
	out := *now
	if before.Began != nil {
		out.Began = before.Began
	}
	if out.Ended == nil {
		out.Ended = before.Ended
	}
	if now.Began == nil || before.Ended != nil && now.Ended == nil {
		out.Left = before.Left
	}
	out.Moved, out.Replaced = max(now.Moved, before.Moved), max(now.Replaced, before.Replaced)
	return &out
}

func sameConnections(a, b *v1alpha1.Connections) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Began.Equal(b.Began) && a.Ended.Equal(b.Ended) && a.Left == b.Left && a.Moved == b.Moved && a.Replaced == b.Replaced && a.Refused == b.Refused
}

// pressing: the controller waits for what the source has to say of connections.
func pressing(before, now *v1alpha1.Connections) bool {
	if now == nil {
		return false
	}
	if before == nil {
		before = &v1alpha1.Connections{}
	}
	return now.Began != nil && before.Began == nil || now.Ended != nil && before.Ended == nil
}

// named are the zones of a migration's ports, and behind them those that ports share.
func named(pm *v1alpha1.PortMigration, zones map[string]conntrack.Zone) []string {
	var ports, others []string
	for name := range zones {
		switch {
		case hasPort(pm, name):
			ports = append(ports, name)
		case shared(name):
			others = append(others, name)
		}
	}
	slices.Sort(ports)
	slices.Sort(others)
	return append(ports, others...)
}

func hasPort(pm *v1alpha1.PortMigration, name string) bool {
	return slices.ContainsFunc(pm.Spec.Ports, func(p v1alpha1.MigratedPort) bool { return p.Name == name })
}

// settle ends a migration's hand-over: on the source with a last look when the VM runs on the target, on a target to which the VM does not come by the removal of what it was told.
func (w *watch) settle(ctx context.Context, pm *v1alpha1.PortMigration) {
	switch {
	case pm == nil || w.o.switchover == nil:
	case w.key.side == sideSource:
		if w.courier != nil && (reached(pm, v1alpha1.StageActivated) || reached(pm, v1alpha1.StageReady) || reached(pm, v1alpha1.StageCommitted)) {
			w.courier.finish()
		}
	case reached(pm, v1alpha1.StageRolledBack) || pm.Status.Result == v1alpha1.MigrationFailed:
		if err := w.o.switchover.handoff.clean(ctx, w); err != nil {
			w.log.Warn("connections of a VM that does not come are left until they end by themselves", "error", err)
		}
	}
}

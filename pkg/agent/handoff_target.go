package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/peer"
)

var (
	errNoHandoff = errors.New("this node takes no connections: --handoff=false, or its Open vSwitch has the userspace datapath")
	errSettled   = errors.New("the ports are no longer asked for on two nodes: the zone's own word counts now")
)

// reasonForeign: the connection is of none of the addresses that the VM has here.
const reasonForeign conntrack.Reason = "Foreign"

// reception is what a target was told of the VM's connections. It takes one message at a time.
type reception struct {
	mu    sync.Mutex
	table entries
	told  v1alpha1.Connections
	// zones are those that entries were put into.
	zones map[string]conntrack.Zone
	// brought are those that the migration brought into zones that ports share.
	brought brought
	// refused are those connections that the target did not take when it was told of them last. One that has ended on the source since stays among them.
	refused map[flow]bool
	// over: the VM does not come.
	over bool
	// kept are those that were taken out when it seemed not to come, by zone; if it comes they may be put back until a time.
	kept  map[string][]conntrack.Entry
	until time.Time
}

// connections is nil before anything was taken.
func (r *reception) connections() *v1alpha1.Connections {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.zones) == 0 {
		return nil
	}
	told := r.told
	return &told
}

// close gives the table up; the next use opens another.
func (r *reception) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop()
}

func (r *reception) drop() {
	if r.table != nil {
		_ = r.table.Close()
		r.table = nil
	}
}

func (r *reception) opened(h *handoff) (t entries, err error) {
	if r.table == nil {
		if t, err = h.open(); err == nil {
			r.table = t
		}
	}
	return r.table, err
}

// take puts some of the VM's connections into a zone of this node's, as the source knows them.
func (h *handoff) take(ctx context.Context, w *watch, msg peer.Message) (peer.Reply, error) {
	if h == nil {
		return peer.Reply{}, errNoHandoff
	}
	told, err := conntrack.Decode(msg.Entries)
	if err != nil {
		return peer.Reply{}, err
	}
	mine, err := h.addresses(w.launcher)
	if err != nil {
		return peer.Reply{}, err
	}
	all := told
	var foreign []conntrack.Entry // as those of a NIC that only the source has
	told = slices.DeleteFunc(slices.Clone(all), func(e conntrack.Entry) bool {
		if e.Of(mine...) {
			return false
		}
		foreign = append(foreign, e)
		return true
	})
	r := &w.reception
	r.mu.Lock()
	defer r.mu.Unlock()
	zone, err := h.zone(ctx, w, msg.Zone)
	if err != nil {
		return peer.Reply{}, err
	}
	table, err := r.opened(h)
	if err != nil {
		return peer.Reply{}, err
	}
	if r.zones == nil {
		r.zones = map[string]conntrack.Zone{}
	}
	r.zones[msg.Zone] = zone
	result, err := table.Upsert(ctx, zone, told)
	if shared(msg.Zone) {
		r.bring(msg.Zone, result.New, told, h.limit)
	}
	if len(foreign) > 0 {
		result.Refused[reasonForeign] = len(foreign)
	}
	refused := 0
	if err == nil {
		refused = r.refuse(msg.Zone, all, append(foreign, result.NotMoved...), h.limit)
	}
	h.count(w, result, refused)
	if err != nil {
		r.drop()
		return peer.Reply{}, err
	}
	return peer.Reply{Again: result.Refused[conntrack.ReasonConflict]+result.Refused[conntrack.ReasonTableFull] > 0}, nil
}

// zone is the number that a zone of the migration has here.
func (h *handoff) zone(ctx context.Context, w *watch, name string) (conntrack.Zone, error) {
	pm := w.o.migrations.get(w.key)
	switch {
	case pm == nil || w.reception.over || pm.Status.Over() || reached(pm, v1alpha1.StageCommitted) || reached(pm, v1alpha1.StageRolledBack):
		return 0, errSettled
	case !shared(name) && (w.tap(ident.PortName(name)) == nil || !hasPort(pm, name)):
		return 0, fmt.Errorf("zone %q is of none of the migration's ports that are attached here", name)
	}
	zones, err := h.zones(ctx)
	if err == nil && zones[name] == 0 {
		err = fmt.Errorf("%w: %q", errNoZone, name)
	}
	return zones[name], err
}

// refuse notes which of those that were told of a zone were not taken, and returns how many of these were not refused before. Those beyond a limit are not noted.
func (r *reception) refuse(zone string, told, refused []conntrack.Entry, limit int) (news int) {
	before := map[flow]bool{}
	for _, e := range told {
		if f := flowOf(zone, e); r.refused[f] {
			before[f] = true
			delete(r.refused, f)
		}
	}
	if r.refused == nil {
		r.refused = map[flow]bool{}
	}
	for _, e := range refused {
		f := flowOf(zone, e)
		if !before[f] {
			news++
		}
		if len(r.refused) < limit {
			r.refused[f] = true
		}
	}
	r.told.Refused = int64(len(r.refused))
	return news
}

// count notes what became of entries, of which so many were refused that were not before; the caller has the lock.
func (h *handoff) count(w *watch, result conntrack.Result, refused int) {
	t := &w.reception.told
	t.Moved += int64(result.Made + result.Replaced)
	t.Replaced += int64(result.Replaced)
	for what, n := range map[string]int{
		handoffMoved: result.Made + result.Replaced, handoffReplaced: result.Replaced, handoffRenewed: result.Renewed, handoffRefused: refused,
	} {
		h.entries.WithLabelValues(what).Add(float64(n))
	}
	if refused+result.Unlabelled > 0 {
		w.log.Warn("not all of the VM's connections were taken over as they were", "refused", result.Refused, "without_labels", result.Unlabelled, "error", result.Why)
	}
}

// clean takes the VM's connections out of the zones of its ports here, where it does not come, and out of those that ports share what the migration brought there. OVN may have taken a zone back by then: as long as nobody else has it nobody else has entries in it, and
// when somebody has, OVN has flushed it before.
func (h *handoff) clean(ctx context.Context, w *watch) error {
	if h == nil {
		return nil
	}
	r := &w.reception
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || len(r.zones) == 0 {
		r.over = true
		return nil
	}
	r.over, r.kept = true, map[string][]conntrack.Entry{}
	now, err := h.zones(ctx)
	if err != nil {
		return err
	}
	mine, err := h.addresses(w.launcher)
	if err != nil {
		return err
	}
	table, err := r.opened(h)
	if err != nil {
		return err
	}
	var ports, others []conntrack.Zone
	names := map[conntrack.Zone]string{}
	for name, zone := range r.zones {
		switch {
		case now[name] != zone && slices.Contains(slices.Collect(maps.Values(now)), zone):
			continue
		case shared(name):
			others = append(others, zone)
		default:
			ports = append(ports, zone)
		}
		names[zone] = name
	}
	removed, start := 0, time.Now()
	d, err := table.Dump(ctx, conntrack.Query{Zones: append(ports, others...), Limit: h.limit, Keep: of(mine)})
	for zone, entries := range d.Entries {
		if name := names[zone]; shared(name) {
			entries = slices.DeleteFunc(entries, func(e conntrack.Entry) bool { return !r.brought.idle(name, e, start) })
		}
		if len(entries) > 0 {
			r.kept[names[zone]] = entries
		}
		n, rerr := table.Remove(ctx, zone, entries)
		removed, err = removed+n, errors.Join(err, rerr)
	}
	if err != nil {
		r.drop()
		return err
	}
	w.log.Info("connections of a VM that does not come are removed", "removed", removed)
	return nil
}

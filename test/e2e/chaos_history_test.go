package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// asked is what a row asked for at some time.
type asked struct{ chassis, strategy string }

// history is what became of every port since it is watched: nothing that lasted for a moment only is missed, as it would be by looking now and then.
type history struct {
	databases []client.Client

	mu sync.Mutex
	// rows has what each row asked for, one after another; mains the chassis that were main, "" when none was. Repetitions are left out.
	rows  map[ident.PortName][]asked
	mains map[ident.PortName][]string
	// names are those of chassis by the UUID of their rows, also of chassis that are gone.
	names map[string]string
}

// watchHistory begins with what the databases say now.
func watchHistory(ctx context.Context, northbound, southbound string) (*history, error) {
	h := &history{rows: map[ident.PortName][]asked{}, mains: map[ident.PortName][]string{}, names: map[string]string{}}
	nb, err := nbdb.FullDatabaseModel()
	if err != nil {
		return nil, err
	}
	sb, err := sbdb.FullDatabaseModel()
	if err != nil {
		return nil, err
	}
	port := &nbdb.LogicalSwitchPort{}
	if err := h.follow(ctx, northbound, nb, client.WithTable(port, &port.Name, &port.Options)); err != nil {
		return nil, err
	}
	// The chassis first: bindings point to them.
	ch := &sbdb.Chassis{}
	if err := h.follow(ctx, southbound, sb, client.WithTable(ch, &ch.Name), client.WithTable(&sbdb.PortBinding{})); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *history) follow(ctx context.Context, endpoint string, db model.ClientDBModel, tables ...client.MonitorOption) error {
	quiet := logr.FromSlogHandler(slog.DiscardHandler)
	c, err := client.NewOVSDBClient(db, client.WithEndpoint(endpoint), client.WithLogger(&quiet))
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", endpoint, err)
	}
	if err := c.Connect(ctx); err != nil {
		return fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	h.databases = append(h.databases, c)
	c.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row model.Model) { h.take(row) },
		UpdateFunc: func(_ string, _, row model.Model) { h.take(row) },
	})
	for _, table := range tables { // one after another, so that names are known when they are needed
		if _, err := c.Monitor(ctx, c.NewMonitor(table)); err != nil {
			return fmt.Errorf("watch %s: %w", endpoint, err)
		}
	}
	return nil
}

func (h *history) close() {
	for _, db := range h.databases {
		db.Close()
	}
}

func (h *history) take(row model.Model) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch r := row.(type) {
	case *sbdb.Chassis:
		h.names[r.UUID] = r.Name
	case *nbdb.LogicalSwitchPort:
		add(h.rows, ident.PortName(r.Name), asked{r.Options["requested-chassis"], r.Options["activation-strategy"]})
	case *sbdb.PortBinding:
		main := ""
		if r.Chassis != nil {
			if main = h.names[*r.Chassis]; main == "" {
				main = "unknown chassis " + *r.Chassis
			}
		}
		add(h.mains, ident.PortName(r.LogicalPort), main)
	}
}

// add appends what differs from the last one.
func add[T comparable](m map[ident.PortName][]T, port ident.PortName, v T) {
	if list := m[port]; len(list) == 0 || list[len(list)-1] != v {
		m[port] = append(list, v)
	}
}

// mark is a moment in the history of one port.
type mark struct{ rows, mains int }

// now is the present moment; what comes after it begins with what is.
func (h *history) now(port ident.PortName) mark {
	h.mu.Lock()
	defer h.mu.Unlock()
	return mark{max(0, len(h.rows[port])-1), max(0, len(h.mains[port])-1)}
}

// since is what a row asked for, and which chassis were main. A moment without a main chassis is left out: OVN has one in every hand-over.
func (h *history) since(port ident.PortName, m mark) (rows []asked, mains []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rows = slices.Clone(h.rows[port][min(m.rows, len(h.rows[port])):])
	for _, c := range h.mains[port][min(m.mains, len(h.mains[port])):] {
		if c != "" && (len(mains) == 0 || mains[len(mains)-1] != c) {
			mains = append(mains, c)
		}
	}
	return rows, mains
}

// wellFormed is nil unless a row once asked for what must never be asked for.
func wellFormed(rows []asked) error {
	for i, r := range rows {
		names := strings.Split(r.chassis, ",")
		switch {
		case slices.Contains(names, ""):
			return fmt.Errorf("the row asked for an empty chassis: %v", rows)
		case len(names) > 2:
			return fmt.Errorf("the row asked for %d chassis: %v", len(names), rows)
		case (len(names) == 2) != (r.strategy == "rarp"):
			return fmt.Errorf("the row asked for %q with strategy %q, want a strategy with two chassis and none with one: %v", r.chassis, r.strategy, rows)
		case i > 0 && len(names) == 2 && strings.Contains(rows[i-1].chassis, ","):
			return fmt.Errorf("the row went from one pair straight to another: %v", rows)
		}
	}
	return nil
}

// path is what the rows asked for, without the strategies.
func path(rows []asked) []string {
	var p []string
	for _, r := range rows {
		if len(p) == 0 || p[len(p)-1] != r.chassis {
			p = append(p, r.chassis)
		}
	}
	return p
}

package ovs

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// watchers tells those who wait for a row that it changed. It carries no contents: who is told reads the cache, which libovsdb updates before
// it sends the event.
type watchers struct {
	mu         sync.Mutex
	interfaces map[string]map[chan struct{}]struct{}
	config     []func()
}

var _ cache.EventHandler = (*watchers)(nil)

// OnAdd implements cache.EventHandler.
func (w *watchers) OnAdd(_ string, m model.Model) { w.notify(nil, m) }

// OnUpdate implements cache.EventHandler.
func (w *watchers) OnUpdate(_ string, old, m model.Model) { w.notify(old, m) }

// OnDelete implements cache.EventHandler.
func (w *watchers) OnDelete(_ string, m model.Model) { w.notify(nil, m) }

// notify tells of a row that changed; old is nil unless it was there before and is still.
func (w *watchers) notify(old, m model.Model) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if row, ok := m.(*vswitchdb.Interface); ok {
		for _, name := range []string{row.Name, anyInterface} {
			for ch := range w.interfaces[name] {
				signal(ch)
			}
		}
	}
	if !isConfigChange(old, m) {
		return
	}
	for _, f := range w.config {
		f()
	}
}

// isConfigChange is false for the changes that every pod brings: its Interface, its Port, and the bridge's list of ports.
func isConfigChange(old, m model.Model) bool {
	switch row := m.(type) {
	case *vswitchdb.Interface:
		return row.ExternalIDs[keyContainer] == ""
	case *vswitchdb.Port:
		return false
	case *vswitchdb.Bridge:
		was, ok := old.(*vswitchdb.Bridge)
		return !ok || slices.Equal(was.Ports, row.Ports)
	default:
		return true
	}
}

// signal marks the channel; a mark that is there already says as much.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// anyInterface is in place of a name: no Interface has none.
const anyInterface = ""

// subscribe returns a channel that is marked after every change of the Interface row of that name.
func (w *watchers) subscribe(name string) (ch chan struct{}, cancel func()) {
	ch = make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interfaces == nil {
		w.interfaces = map[string]map[chan struct{}]struct{}{}
	}
	if w.interfaces[name] == nil {
		w.interfaces[name] = map[chan struct{}]struct{}{}
	}
	w.interfaces[name][ch] = struct{}{}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.interfaces[name], ch)
		if len(w.interfaces[name]) == 0 {
			delete(w.interfaces, name)
		}
	}
}

// OnConfigChange calls f after any change of the database that is not of a pod's Interface. f must return at once.
func (c *Client) OnConfigChange(f func()) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.config = append(c.watch.config, f)
}

// WaitInstalled returns when ovn-controller has said of the Interface that its port is bound here and its flows are installed. It returns early
// with an error that wraps ErrInterface when ovs-vswitchd cannot use the interface, and ErrNoPort when the row is gone.
func (c *Client) WaitInstalled(ctx context.Context, name string) error {
	ch, cancel := c.watch.subscribe(name)
	defer cancel()
	for {
		// Read after subscribing, and again after every event: an event between the two is not lost.
		p, err := c.Port(ctx, name)
		if err != nil {
			return err
		}
		if p.Error != "" {
			return fmt.Errorf("%w: interface %s: %s", ErrInterface, name, p.Error)
		}
		if p.Installed {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interface %s: wait for external_ids:ovn-installed: %w", name, ctx.Err())
		case <-ch:
		}
	}
}

// WaitPort returns a port of a container of this node by what OVN calls it, as soon as somebody has plugged it in here.
func (c *Client) WaitPort(ctx context.Context, id ident.PortName) (PortStatus, error) {
	ch, cancel := c.watch.subscribe(anyInterface)
	defer cancel()
	for {
		all, err := c.PodPorts(ctx) // after subscribing, as in WaitInstalled
		if err != nil {
			return PortStatus{}, err
		}
		if i := slices.IndexFunc(all, func(p PortStatus) bool { return p.ID == id }); i >= 0 {
			return all[i], nil
		}
		select {
		case <-ctx.Done():
			return PortStatus{}, fmt.Errorf("wait for an interface of port %s: %w", id, ctx.Err())
		case <-ch:
		}
	}
}

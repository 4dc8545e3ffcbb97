package ovs

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"

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
func (w *watchers) OnAdd(_ string, m model.Model) { w.notify(m, true) }

// OnUpdate implements cache.EventHandler.
func (w *watchers) OnUpdate(_ string, old, m model.Model) { w.notify(m, isConfigChange(old, m)) }

// OnDelete implements cache.EventHandler.
func (w *watchers) OnDelete(_ string, m model.Model) { w.notify(m, true) }

// isConfigChange is false for the changes that every pod brings: the bridge's list of ports.
func isConfigChange(old, m model.Model) bool {
	was, ok := old.(*vswitchdb.Bridge)
	is, ok2 := m.(*vswitchdb.Bridge)
	return !ok || !ok2 || slices.Equal(was.Ports, is.Ports)
}

func (w *watchers) notify(m model.Model, config bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch row := m.(type) {
	case *vswitchdb.Interface:
		for ch := range w.interfaces[row.Name] {
			signal(ch)
		}
		config = config && row.ExternalIDs[keyContainer] == ""
	case *vswitchdb.Port:
		config = false // comes and goes with its Interface
	}
	if config {
		for _, f := range w.config {
			f()
		}
	}
}

// signal marks the channel; a mark that is there already says as much.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

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

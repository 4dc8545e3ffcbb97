package netdev

import (
	"context"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// watchBuffer is the receive buffer of the event sockets in bytes: a node that starts hundreds of pods makes thousands of events at once.
const watchBuffer = 4 << 20

// Watch calls changed whenever a link or an address of the host changes, and once at the start. Events are not told apart: the caller reads
// everything again. Events of our own pods' veths are left out: they are many and say nothing about the node. It returns when ctx ends, or
// with an error when the kernel's events cannot be had.
func (h Host) Watch(ctx context.Context, changed func()) error {
	for ctx.Err() == nil {
		if err := h.watchOnce(ctx, changed); err != nil {
			return err
		}
	}
	return nil
}

// watchOnce returns nil when a subscription ended: events were lost (ENOBUFS), or ctx ended.
func (h Host) watchOnce(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	links, addrs, err := h.subscribe(ctx)
	defer drain(addrs)
	defer drain(links)
	defer cancel()
	if err != nil {
		return err
	}
	// After subscribing, so that nothing is missed between what the caller reads now and the first event.
	changed()
	for {
		ok, relevant := true, true
		select {
		case <-ctx.Done():
			return nil
		case update, open := <-links:
			ok = open
			relevant = !open || !isPodVeth(update.Attrs().Name)
		case _, ok = <-addrs:
		}
		if !ok {
			return nil
		}
		if relevant {
			changed()
		}
	}
}

// subscribe returns nil channels for what it could not subscribe to. The others are closed some time after ctx ends.
func (h Host) subscribe(ctx context.Context) (links chan netlink.LinkUpdate, addrs chan netlink.AddrUpdate, err error) {
	ns, err := h.handle()
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	lost := func(error) {} // the closed channel says so too
	l, a := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	err = netlink.LinkSubscribeWithOptions(l, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace: &ns, ErrorCallback: lost, ReceiveBufferSize: watchBuffer, ReceiveBufferForceSize: true,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("subscribe to link events: %w", err)
	}
	err = netlink.AddrSubscribeWithOptions(a, ctx.Done(), netlink.AddrSubscribeOptions{
		Namespace: &ns, ErrorCallback: lost, ReceiveBufferSize: watchBuffer, ReceiveBufferForceSize: true,
	})
	if err != nil {
		return l, nil, fmt.Errorf("subscribe to address events: %w", err)
	}
	return l, a, nil
}

// drain reads until the subscription's goroutine, which may be blocked on the channel, has closed it.
func drain[T any](ch chan T) {
	if ch == nil {
		return
	}
	for range ch { //nolint:revive // only the end matters
	}
}

func isPodVeth(name string) bool {
	return len(name) == len(HostName("", "")) && strings.HasPrefix(name, hostPrefix)
}

func (h Host) handle() (netns.NsHandle, error) {
	if h.Netns == "" {
		return netns.None(), nil
	}
	ns, err := netns.GetFromPath(h.Netns)
	if err != nil {
		return netns.None(), fmt.Errorf("%w: %s: %w", ErrNoNetns, h.Netns, err)
	}
	return ns, nil
}

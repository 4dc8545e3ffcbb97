package netdev

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestWatch checks that each kind of change is told, and that what pods do is not.
func TestWatch(t *testing.T) {
	useNFT(t)
	h := newHost(t)
	addLink(t, h, "ovn0")
	changed, tables := make(chan struct{}, 1000), make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- h.Watch(ctx, Events{Changed: func() { changed <- struct{}{} }, TableDeleted: func() { tables <- struct{}{} }})
	}()
	expect(t, "first look at links", changed)
	expect(t, "first look at nftables", tables)

	do := func(what string, f func(netlink.Link) error) {
		t.Helper()
		if err := InNetns(h.Netns, func() error {
			link, err := netlink.LinkByName("ovn0")
			if err != nil {
				return err
			}
			return f(link)
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	addr := address(netip.MustParsePrefix("100.64.0.11/16"))
	route := Route{Dst: netip.MustParsePrefix("10.244.0.0/16"), Via: netip.MustParseAddr("100.64.0.1"), Src: netip.MustParseAddr("100.64.0.11")}
	do("link up", netlink.LinkSetUp)
	expect(t, "link up", changed)
	do("address", func(l netlink.Link) error { return netlink.AddrAdd(l, addr) })
	expect(t, "address", changed)
	if _, err := h.SyncRoutes("ovn0", []Route{route}); err != nil {
		t.Fatal(err)
	}
	quiet(changed)
	do("route deleted", func(netlink.Link) error {
		routes, err := ownRoutes()
		if err != nil || len(routes) != 1 {
			return errors.Join(err, errors.New("no route of ours"))
		}
		return netlink.RouteDel(&routes[0])
	})
	expect(t, "route deleted", changed)

	if err := h.Masquerade(ctx, Masquerade{Gateway: "ovn0"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tables:
		t.Error("our own table's writing was told as a deletion")
	case <-time.After(50 * time.Millisecond):
	}
	flushNFT(t, h)
	expect(t, "nftables flushed", tables)

	quiet(changed)
	makePod(t, h, podInterface(true))
	select {
	case <-changed:
		t.Error("a pod's veth was told as a change of the node")
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
}

func expect(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
		quiet(ch)
	case <-time.After(time.Minute):
		t.Fatalf("%s: no event", what)
	}
}

// quiet reads events until there are none for a while, on a busy machine too: one change makes several.
func quiet(ch <-chan struct{}) {
	for {
		select {
		case <-ch:
		case <-time.After(500 * time.Millisecond):
			return
		}
	}
}

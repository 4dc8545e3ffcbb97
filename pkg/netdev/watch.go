package netdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// watchBuffer is the receive buffer of the event sockets in bytes: a node that starts hundreds of pods makes thousands of events at once.
const watchBuffer = 4 << 20

// Events are what Watch tells. The functions must return at once and may be called concurrently. Events are not told apart further: who is told
// reads everything again.
type Events struct {
	// Changed: a link or an address changed, borrowed ones aside, or a route of RouteProtocol is gone. Our own pods' veths are left out: they are many and say nothing
	// about the node.
	Changed func()
	// TableDeleted: an nftables table is gone, as after `nft flush ruleset`, which firewall services run when they start.
	TableDeleted func()
}

// Watch calls the functions of e after every event, and all of them once at the start and whenever events may have been lost. It returns when ctx
// ends, or with an error when the kernel's events cannot be had.
func (h Host) Watch(ctx context.Context, e Events) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return h.watch(ctx, subscription{
			protocol: unix.NETLINK_ROUTE, initial: e.Changed, event: routeEvent(e.Changed),
			groups: []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE},
		})
	})
	g.Go(func() error {
		return h.watch(ctx, subscription{
			protocol: unix.NETLINK_NETFILTER, groups: []uint{unix.NFNLGRP_NFTABLES}, initial: e.TableDeleted, event: nftablesEvent(e.TableDeleted),
		})
	})
	return g.Wait()
}

// subscription is one netlink socket's worth of events.
type subscription struct {
	protocol int
	groups   []uint
	// initial is called when the subscription stands, so that nothing is missed between what is read then and the first event.
	initial func()
	event   func(msgType uint16, data []byte)
}

func (h Host) watch(ctx context.Context, s subscription) error {
	for ctx.Err() == nil {
		err := h.watchOnce(ctx, s)
		// ENOBUFS: events were lost; the new subscription starts with a full look.
		if err != nil && !errors.Is(err, unix.ENOBUFS) && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func (h Host) watchOnce(ctx context.Context, s subscription) error {
	var sock *nl.NetlinkSocket
	err := h.do(func() (err error) {
		sock, err = nl.Subscribe(s.protocol, s.groups...)
		return err
	})
	if err != nil {
		return fmt.Errorf("subscribe to netlink events of protocol %d: %w", s.protocol, err)
	}
	defer sock.Close()
	// Closing the socket is what ends a Receive.
	stop := context.AfterFunc(ctx, sock.Close)
	defer stop()
	if err := sock.SetReceiveBufferSize(watchBuffer, true); err != nil {
		return fmt.Errorf("enlarge buffer of netlink events: %w", err)
	}
	s.initial()
	for {
		msgs, from, err := sock.Receive()
		if err != nil {
			return fmt.Errorf("receive netlink events of protocol %d: %w", s.protocol, err)
		}
		if from.Pid != nl.PidKernel {
			continue // any process can send to the socket
		}
		for _, m := range msgs {
			s.event(m.Header.Type, m.Data)
		}
	}
}

func routeEvent(changed func()) func(uint16, []byte) {
	return func(msgType uint16, data []byte) {
		switch msgType {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			link, err := netlink.LinkDeserialize(nil, data)
			if err == nil && isPodVeth(link.Attrs().Name) {
				return
			}
			changed()
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			if !maybeBorrowed(data) {
				changed()
			}
		case unix.RTM_DELROUTE:
			if len(data) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(data).Protocol == RouteProtocol {
				changed()
			}
		}
	}
}

// maybeBorrowed: an address looks like one that is borrowed again every second (struct ifaddrmsg, linux/if_addr.h).
func maybeBorrowed(data []byte) bool {
	if len(data) < unix.SizeofIfAddrmsg {
		return false
	}
	family, bits, flags := data[0], data[1], data[2]
	return (family == unix.AF_INET && bits == 32 || family == unix.AF_INET6 && bits == 128) && flags&unix.IFA_F_DEPRECATED != 0
}

// nftablesEvent: the message's type holds the subsystem in its upper byte (nfnetlink.h).
func nftablesEvent(tableDeleted func()) func(uint16, []byte) {
	return func(msgType uint16, _ []byte) {
		var b [2]byte
		binary.BigEndian.PutUint16(b[:], msgType)
		if b[0] == unix.NFNL_SUBSYS_NFTABLES && b[1] == unix.NFT_MSG_DELTABLE {
			tableDeleted()
		}
	}
}

func isPodVeth(name string) bool {
	return len(name) == len(HostName("", "")) && strings.HasPrefix(name, hostPrefix)
}

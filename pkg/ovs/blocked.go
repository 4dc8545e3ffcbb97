package ovs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// OVN's flows for a port that an activation strategy blocks: whatever comes from it is dropped where packets come in, at this priority, until it is
// activated (controller/physical.c, setup_activation_strategy, 22.09 to 26.03).
const (
	blockTable    = 0
	blockPriority = 1000
)

// WaitBlocked returns when ovn-controller has blocked the port, as it does on an additional chassis with an activation strategy: nothing that comes from the
// port's link gets any further. It may say ovn-installed before that (OVN 23.03 waits for its own claim to come back from the southbound database), so this is
// to be asked after WaitInstalled. The flow is watched on the bridge's own OpenFlow socket; no database tells of it.
func (c *Client) WaitBlocked(ctx context.Context, name string) error {
	return c.watchBlock(ctx, name, func(f flowUpdate) bool { return !f.removed })
}

// WatchOpened tells when ovn-controller lets pass what comes from a port that it had blocked, as it does once the port is activated, and the zero time when it blocks it, until ctx ends. Of a port that is never
// blocked nothing is told; one that OVN gives up is opened too. The times are those at which the bridge has told.
func (c *Client) WatchOpened(ctx context.Context, name string, tell func(opened time.Time)) error {
	return c.watchBlock(ctx, name, func(f flowUpdate) bool {
		if f.removed {
			tell(time.Now())
		} else {
			tell(time.Time{})
		}
		return false
	})
}

// watchBlock shows what becomes of the flow that blocks a port, the one that is there first, until who sees it has enough, or ctx ends, which is an error.
func (c *Client) watchBlock(ctx context.Context, name string, enough func(flowUpdate) bool) error {
	p, err := c.Port(ctx, name)
	if err != nil {
		return err
	}
	if p.Ofport <= 0 {
		return fmt.Errorf("%w: interface %s: ovs-vswitchd has given it no port number", ErrInterface, name)
	}
	socket, err := c.bridgeSocket()
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("connect to bridge %s (is ovs-vswitchd running, and its directory mounted?): %w", ident.IntegrationBridge, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	err = followBlock(conn, uint32(p.Ofport), enough) //nolint:gosec // positive
	if ctx.Err() != nil {
		return fmt.Errorf("interface %s: wait for OVN's flow that blocks the port: %w", name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("bridge %s: watch flows of interface %s: %w", ident.IntegrationBridge, name, err)
	}
	return nil
}

// bridgeSocket is where ovs-vswitchd listens for OpenFlow: beside the database's socket.
func (c *Client) bridgeSocket() (string, error) {
	db, ok := strings.CutPrefix(c.endpoint, "unix:")
	if !ok {
		return "", fmt.Errorf("Open vSwitch database %s is not a unix socket: bridge %s cannot be reached beside it", c.endpoint, ident.IntegrationBridge) //nolint:staticcheck // a name
	}
	return filepath.Join(filepath.Dir(db), ident.IntegrationBridge+".mgmt"), nil
}

// followBlock shows the flow that drops whatever comes in by a port, when it is there and when it has gone, until that is enough.
func followBlock(conn net.Conn, inPort uint32, enough func(flowUpdate) bool) error {
	if err := errors.Join(writeOpenFlow(conn, ofHello, nil), writeOpenFlow(conn, ofMultipartRequest, monitorRequest(blockTable, inPort))); err != nil {
		return err
	}
	for {
		m, err := readOpenFlow(conn)
		if err != nil {
			return err
		}
		switch m.kind {
		case ofEchoRequest:
			if err := writeOpenFlow(conn, ofEchoReply, m.body); err != nil {
				return err
			}
		case ofMultipartReply:
			flows, err := flowUpdates(m.body)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if f.priority == blockPriority && (f.drops || f.removed) && f.isInPort(inPort) && enough(f) {
					return nil
				}
			}
		}
	}
}

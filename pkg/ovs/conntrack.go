package ovs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc/jsonrpc"
	"path/filepath"
	"strings"
)

// userspaceDatapath is the one datapath of type DatapathNetdev (ofproto/ofproto-dpif.c).
const userspaceDatapath = "netdev@ovs-netdev"

// TrackLoosely lets the userspace datapath's connection tracking take TCP segments whatever their sequence numbers are, as the kernel's does with a connection that
// it comes across in the middle. A node that a VM is going to move to sees copies of what is sent to it, and nothing of what the VM answers elsewhere; after 64 KiB
// strict tracking takes what is sent for invalid, and OVN drops all of it, for as long as the connection lives. ovs-vswitchd forgets this when it ends. It is
// told by its control socket (ovs-appctl(8)); no database has it.
func (c *Client) TrackLoosely(ctx context.Context) error {
	db, ok := strings.CutPrefix(c.endpoint, "unix:")
	if !ok {
		return fmt.Errorf("Open vSwitch database %s is not a unix socket: ovs-vswitchd cannot be reached beside it", c.endpoint) //nolint:staticcheck // a name
	}
	sockets, err := filepath.Glob(filepath.Join(filepath.Dir(db), "ovs-vswitchd*.ctl"))
	if err != nil || len(sockets) == 0 {
		return fmt.Errorf("there is no control socket ovs-vswitchd*.ctl in %s: is ovs-vswitchd running, and its directory mounted?", filepath.Dir(db))
	}
	var errs []error
	for _, s := range sockets { // one that was killed has left its own
		err := control(ctx, s, "dpctl/ct-disable-tcp-seq-chk", userspaceDatapath)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("let the userspace datapath track TCP connections that it sees one half of: %w", errors.Join(errs...))
}

// control asks a daemon of Open vSwitch to do something (JSON-RPC 1.0, lib/unixctl.c).
func control(ctx context.Context, socket, command, argument string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	client := jsonrpc.NewClient(conn)
	defer client.Close() //nolint:errcheck // nothing is lost with it
	var said string
	call := client.Go(command, argument, &said, nil)
	select {
	case <-call.Done:
		err = call.Error
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s %s at %s: %w", command, argument, socket, err)
	}
	return nil
}

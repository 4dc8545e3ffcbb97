package ovs

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	"github.com/godwit-cni/godwit/pkg/vswitchdb"
)

// userspaceDatapath is the one datapath of type DatapathNetdev (ofproto/ofproto-dpif.c).
const userspaceDatapath = "netdev@ovs-netdev"

// TrackLoosely lets the userspace datapath's connection tracking take TCP segments whatever their sequence numbers are, as the kernel's does with a connection that
// it comes across in the middle. A node that a VM is going to move to sees copies of what is sent to it, and nothing of what the VM answers elsewhere; after 64 KiB
// strict tracking takes what is sent for invalid, and OVN drops all of it, for as long as the connection lives. ovs-vswitchd forgets this when it ends. No database has it.
func (c *Client) TrackLoosely(ctx context.Context) error {
	if _, err := c.control(ctx, "dpctl/ct-disable-tcp-seq-chk", userspaceDatapath); err != nil {
		return fmt.Errorf("let the userspace datapath track TCP connections that it sees one half of: %w", err)
	}
	return nil
}

// capabilityZeroSNAT is what ovs-vswitchd says of a datapath that can translate a source to itself; true or false. Where it is true, ovn-controller lets each connection that it
// commits be translated so, for the sake of tuples that collide with another's translated one (OVN's lib/actions.c, encode_CT_COMMIT).
const capabilityZeroSNAT = "ct_zero_snat"

// AvoidZeroSNAT takes that capability from the userspace datapath if its ovs-vswitchd dies of it, and reports whether it had to. Its connection tracking has a second entry for a
// translated connection, which does not expire. For one that is translated to itself, both have the same hash: a packet that comes when the first has expired and is not
// swept yet, within 20 s, finds the second twice, and an assertion in conn_update_state ends the daemon, and every connection of the node with it. The copies that are sent to a
// VM's target are such connections, as is UDP that goes on after a pause. Fixed by Open vSwitch's commit 1116459b3.
//
// The capability is in the database, where ovs-vswitchd writes it when it starts; the caller's reconciliation, which a change of the row starts, comes after.
func (c *Client) AvoidZeroSNAT(ctx context.Context) (avoided bool, err error) {
	version, err := c.control(ctx, "version")
	if err != nil {
		return false, fmt.Errorf("ask ovs-vswitchd for its version: %w", err)
	}
	if !diesOfZeroSNAT(version) {
		return false, nil
	}
	root, err := c.root(ctx)
	if err != nil {
		return false, err
	}
	uuid, ok := root.Datapaths[DatapathNetdev]
	if !ok {
		return false, nil // ovn-controller makes it
	}
	row := &vswitchdb.Datapath{UUID: uuid}
	if err := c.ovsdb.Get(ctx, row); err != nil {
		return false, fmt.Errorf("read datapath %s: %w", DatapathNetdev, err)
	}
	if row.Capabilities[capabilityZeroSNAT] != "true" {
		return false, nil
	}
	ops, err := c.setKeys(row, &row.Capabilities, map[string]string{capabilityZeroSNAT: "false"})
	if err == nil {
		err = c.transact(ctx, ops)
	}
	if err != nil {
		return false, fmt.Errorf("set capabilities:%s of datapath %s: %w", capabilityZeroSNAT, DatapathNetdev, err)
	}
	return true, nil
}

var versionPattern = regexp.MustCompile(`\(Open vSwitch\) (\d+)\.(\d+)\.(\d+)`)

// diesOfZeroSNAT says whether an ovs-vswitchd of what it says of itself lacks the mend. One that says nothing that can be read is taken to.
func diesOfZeroSNAT(version string) bool {
	m := versionPattern.FindStringSubmatch(version)
	if m == nil {
		return true
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1])
	}
	mended := map[[2]int]int{{2, 17}: 8, {3, 0}: 5, {3, 1}: 3, {3, 2}: 3} // the branches that have it, and since when
	if since, ok := mended[[2]int{n[0], n[1]}]; ok {
		return n[2] < since
	}
	return n[0] < 3
}

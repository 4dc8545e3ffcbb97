package main

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nfgenmsg is the length of struct nfgenmsg, with which the messages of netfilter begin.
const nfgenmsg = 4

// dump returns the entries of a zone as the kernel describes them: messages without their netlink header. Kernels before 6.8 cannot be asked for one zone alone.
func dump(zone uint16) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("dump the connection tracking table: %w", err)
	}
	var entries [][]byte
	for _, m := range messages {
		if zoneOf(m) == zone {
			entries = append(entries, m)
		}
	}
	slices.SortFunc(entries, slices.Compare)
	return entries, nil
}

// zoneOf is an entry's zone; entries of zone 0 say nothing of it.
func zoneOf(message []byte) uint16 {
	attrs, err := nl.ParseRouteAttr(message[min(nfgenmsg, len(message)):])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == nl.CTA_ZONE && len(a.Value) == 2 {
			return uint16(a.Value[0])<<8 | uint16(a.Value[1])
		}
	}
	return 0
}

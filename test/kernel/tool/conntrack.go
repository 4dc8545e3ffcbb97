package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nfgenmsg is the length of struct nfgenmsg, with which the messages of netfilter begin.
const nfgenmsg = 4

// dumpAll returns all entries as the kernel describes them: messages without their netlink header.
func dumpAll() ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("dump the connection tracking table: %w", err)
	}
	return messages, nil
}

// dump returns the entries of a zone. Kernels before 6.8 cannot be asked for one zone alone.
func dump(zone uint16) ([][]byte, error) {
	messages, err := dumpAll()
	if err != nil {
		return nil, err
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

// tracked is what of an entry says whether it is the same still.
type tracked struct {
	Zone uint16
	// ID is the entry's for as long as it lives.
	ID string
	// Protocol is the IP protocol's number, State that of TCP, Timeout in seconds.
	Protocol, State uint8
	Timeout         uint32
	// Stays are tuples, mark and labels, hexadecimal: what is the same as long as the entry lives, unless somebody changes it.
	Stays string
}

// printTable prints all entries, a JSON object a line.
func printTable() error {
	messages, err := dumpAll()
	if err != nil {
		return err
	}
	for _, m := range messages {
		attrs := within(m[min(nfgenmsg, len(m)):])
		orig, state := attrs[nl.CTA_TUPLE_ORIG], within(within(attrs[nl.CTA_PROTOINFO])[nl.CTA_PROTOINFO_TCP])[nl.CTA_PROTOINFO_TCP_STATE]
		t := tracked{Zone: zoneOf(m), ID: hex.EncodeToString(attrs[nl.CTA_ID])}
		if protocol := within(within(orig)[nl.CTA_TUPLE_PROTO])[nl.CTA_PROTO_NUM]; len(protocol) == 1 {
			t.Protocol = protocol[0]
		}
		if len(state) == 1 {
			t.State = state[0]
		}
		if timeout := attrs[nl.CTA_TIMEOUT]; len(timeout) == 4 {
			t.Timeout = binary.BigEndian.Uint32(timeout)
		}
		t.Stays = fmt.Sprintf("%x %x %x %x", orig, attrs[nl.CTA_TUPLE_REPLY], attrs[nl.CTA_MARK], attrs[nl.CTA_LABELS])
		if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
			return err
		}
	}
	return nil
}

// within are attributes by their kind.
func within(b []byte) map[uint16][]byte {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	out := map[uint16][]byte{}
	for _, a := range attrs {
		out[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return out
}

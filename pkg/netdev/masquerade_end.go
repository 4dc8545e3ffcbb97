package netdev

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EndTranslated deletes connections that leave the host under another address than Masquerade gave them last, which is m; former are translations of before. The first packet of a
// connection alone is translated, so that one that never pauses would keep an address that may be somebody else's by now. A connection of TCP that left under the host's own address stays:
// under another it would not be the same.
func (h Host) EndTranslated(m Masquerade, former []Translation) error {
	filter := &retranslated{Masquerade: m, known: map[netip.Addr]struct{}{}, direct: slices.Concat(m.Sources, m.Except)}
	for _, t := range slices.Concat(former, m.Translations) {
		filter.known[t.To] = struct{}{}
	}
	if err := h.do(func() error { return endConnections(filter) }); err != nil {
		return fmt.Errorf("end connections that leave under a former address: %w", err)
	}
	return nil
}

// endConnections deletes the entries of connection tracking that match.
func endConnections(filter netlink.CustomConntrackFilter) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := dump(func() ([]struct{}, error) {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
			return nil, err
		}); err != nil {
			return err
		}
	}
	return nil
}

// retranslated is a filter of connections whose source is translated otherwise by now. known are the addresses that nobody else translates to; what goes to direct is not translated.
type retranslated struct {
	Masquerade
	known  map[netip.Addr]struct{}
	direct []netip.Prefix
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter. Other zones than 0 are Open vSwitch's.
func (r *retranslated) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	source, sok := netip.AddrFromSlice(flow.Forward.SrcIP)
	seen, ok := netip.AddrFromSlice(flow.Reverse.DstIP)
	if flow.Zone != 0 || !sok || !ok {
		return false
	}
	source, seen = source.Unmap(), seen.Unmap()
	i := slices.IndexFunc(r.Translations, func(t Translation) bool { return t.Source.Contains(source) })
	switch _, known := r.known[seen]; {
	case seen == source || i >= 0 && seen == r.Translations[i].To:
		return false
	case known:
		return true
	}
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	return i >= 0 && ok && flow.Forward.Protocol == unix.IPPROTO_UDP && flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) &&
		!slices.ContainsFunc(r.direct, func(p netip.Prefix) bool { return p.Contains(to.Unmap()) })
}

package netdev

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leadsTo reports whether a backend is one.
func (b Balance) leadsTo(at netip.AddrPort) bool {
	return slices.Contains(b.All.Backends, at) || b.Outside != nil && slices.Contains(b.Outside.Backends, at)
}

// doubtDatagrams notes that connections of UDP to frontends may lead where they should not.
func (b *Balancer) doubtDatagrams(to ...iter.Seq[Frontend]) {
	for _, of := range to {
		for f := range of {
			if f.Protocol == UDP {
				b.datagrams[f] = struct{}{}
			}
		}
	}
}

// listDatagrams are the frontends of UDP with backends that the table has, which another process may have written. What cannot be read is another version's, and no reason not to replace it.
func (b *Balancer) listDatagrams(ctx context.Context) []Frontend {
	var out []Frontend
	for _, ip := range ipFamilies() {
		for _, class := range []string{classVIPs, classNodes} {
			list, err := b.nft.ListElements(ctx, "map", mapPicks+"-"+class+ip.version)
			if err != nil {
				continue
			}
			for _, e := range list {
				if f, ok := parseFrontend(e.Key, ip); ok {
					out = append(out, f)
				}
			}
		}
	}
	return out
}

// parseFrontend reads a frontend's key in its maps.
func parseFrontend(key []string, ip ipFamily) (f Frontend, ok bool) {
	f.Addr = netip.IPv4Unspecified()
	if ip.version == "6" {
		f.Addr = netip.IPv6Unspecified()
	}
	if len(key) == 3 {
		addr, err := netip.ParseAddr(key[0])
		if err != nil {
			return f, false
		}
		f.Addr, key = addr, key[1:]
	}
	if len(key) != 2 {
		return f, false
	}
	port, err := strconv.ParseUint(key[1], 10, 16)
	f.Protocol, f.Port = Protocol(key[0]), uint16(port)
	return f, err == nil
}

// endDatagrams deletes connections of UDP to frontends whose backend is none any more, or that have none though there is one now: who sends again from the same port would never
// get to another.
func (b *Balancer) endDatagrams() error {
	addrs, err := b.host.Addrs()
	if err != nil {
		return err
	}
	filter := &stale{balancer: b, about: b.datagrams, own: map[netip.Addr]struct{}{}}
	for _, a := range addrs {
		filter.own[a.Addr.Addr()] = struct{}{}
	}
	if err := endConnections(filter); err != nil {
		return fmt.Errorf("end connections of UDP to backends that are gone: %w", err)
	}
	return nil
}

// stale is a filter of connections.
type stale struct {
	balancer *Balancer
	about    map[Frontend]struct{}
	own      map[netip.Addr]struct{}
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter. Other zones than 0 are Open vSwitch's.
func (s *stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP || flow.Zone != 0 {
		return false
	}
	to, tok := netip.AddrFromSlice(flow.Forward.DstIP)
	from, fok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !tok || !fok {
		return false
	}
	f := Frontend{Addr: to.Unmap(), Protocol: UDP, Port: flow.Forward.DstPort}
	if _, ok := s.about[f]; !ok {
		if _, own := s.own[f.Addr]; !own {
			return false
		}
		f.Addr = unspecified(f.Addr)
		if _, ok := s.about[f]; !ok {
			return false
		}
	}
	return !s.balancer.have[f].leadsTo(netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort))
}

package netdev

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leadsTo reports whether a backend is one.
func (b Balance) leadsTo(at netip.AddrPort) bool {
	return slices.Contains(b.All.Backends, at) || b.Outside != nil && slices.Contains(b.Outside.Backends, at)
}

// endDatagrams deletes connections of UDP to frontends whose backend is none any more, or that have none though there is one now: who sends again from the same port would never
// get to another.
func (b *Balancer) endDatagrams(about map[Frontend]struct{}) error {
	addrs, err := b.host.Addrs()
	if err != nil {
		return err
	}
	filter := &stale{balancer: b, about: about, own: map[netip.Addr]struct{}{}}
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

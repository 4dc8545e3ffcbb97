package plumb

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// forever is a lease that does not end: 32 bits of seconds, all set.
const forever = math.MaxUint32 * time.Second

// Route is one that the guest is told of. Via is unspecified for a destination on the link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Lease is what the pod's DHCP server gives to the one guest that it serves, for ever.
type Lease struct {
	MAC     net.HardwareAddr
	Address netip.Prefix
	// Server is the server's own address, Router the guest's gateway, not valid for none.
	Server netip.Addr
	Router netip.Addr
	// Routes are given as well; the default route must be among them if there are any (RFC 3442).
	Routes []Route
	// MTU in bytes.
	MTU int
}

// ServeDHCP answers the guest on the bridge until ctx ends. Names are resolved by the guest as by the pod: resolvConf is its file. leased is called, from any
// goroutine, after each answer that gave the lease.
func ServeDHCP(ctx context.Context, bridge, resolvConf string, l Lease, leased func(summary string)) error {
	options, err := l.options(resolvConf)
	if err != nil {
		return fmt.Errorf("serve DHCP on %s: %w", bridge, err)
	}
	server, err := server4.NewServer(bridge, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort}, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		answer := l.answer(m, options)
		if answer == nil {
			return
		}
		if _, err := conn.WriteTo(answer.ToBytes(), peer); err != nil {
			return // the client asks again
		}
		if answer.MessageType() == dhcpv4.MessageTypeAck {
			leased(fmt.Sprintf("%s to %s", l.Address, l.MAC))
		}
	})
	if err != nil {
		return fmt.Errorf("serve DHCP on %s: %w", bridge, err)
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(); ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve DHCP on %s: %w", bridge, err)
	}
	return nil
}

// answer is what a message is answered with, nil for nothing.
func (l Lease) answer(m *dhcpv4.DHCPv4, options []dhcpv4.Option) *dhcpv4.DHCPv4 {
	if m.OpCode != dhcpv4.OpcodeBootRequest || !bytes.Equal(m.ClientHWAddr, l.MAC) {
		return nil
	}
	var kind dhcpv4.MessageType
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
		if wanted := m.RequestedIPAddress(); wanted != nil && !wanted.IsUnspecified() && !wanted.Equal(l.Address.Addr().AsSlice()) {
			kind = dhcpv4.MessageTypeNak
		}
	default:
		return nil
	}
	answer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(l.Server.AsSlice()))
	if err != nil {
		return nil // not a request
	}
	answer.UpdateOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice()))
	if kind == dhcpv4.MessageTypeNak {
		return answer
	}
	answer.YourIPAddr = l.Address.Addr().AsSlice()
	for _, o := range options {
		answer.UpdateOption(o)
	}
	return answer
}

func (l Lease) options(resolvConf string) ([]dhcpv4.Option, error) {
	options := []dhcpv4.Option{
		dhcpv4.OptIPAddressLeaseTime(forever),
		dhcpv4.OptSubnetMask(net.CIDRMask(l.Address.Bits(), 32)),
		dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(l.MTU >> 8), byte(l.MTU)}),
	}
	if l.Router.IsValid() {
		options = append(options, dhcpv4.OptRouter(l.Router.AsSlice()))
	}
	if len(l.Routes) > 0 {
		var routes []*dhcpv4.Route
		for _, r := range l.Routes {
			routes = append(routes, &dhcpv4.Route{Dest: ipNet(r.Dst), Router: r.Via.AsSlice()})
		}
		options = append(options, dhcpv4.OptClasslessStaticRoute(routes...))
	}
	servers, search, err := readResolvConf(resolvConf)
	if err != nil {
		return nil, err
	}
	if len(servers) > 0 {
		options = append(options, dhcpv4.OptDNS(servers...))
	}
	if len(search) > 0 {
		options = append(options, dhcpv4.OptDomainName(search[0]), dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: search}))
	}
	return options, nil
}

// readResolvConf returns the IPv4 servers and the search list of a resolver's configuration.
func readResolvConf(file string) (servers []net.IP, search []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read the pod's resolver configuration: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if ip := net.ParseIP(words[1]).To4(); ip != nil {
				servers = append(servers, ip)
			}
		case "search":
			search = words[1:]
		}
	}
	return servers, search, nil
}

package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/ovn-kubernetes/libovsdb/model"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// TestLifecycleDHCPAnswers: real OVN gives the client behind a port whose row names the Subnet's DHCP options the port's own addresses and all that those say; of domains DHCPv6 says none. The client
// behind one without gets no answer.
func TestLifecycleDHCPAnswers(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	n := newTestNode(t, c, "one", 1)
	served, bare := newTestPod(t, "served", 1), newTestPod(t, "bare", 2)
	dns := netip.MustParseAddr("10.96.0.10")
	dns6 := netip.MustParseAddr("fd00:96::a")
	subnet := topology.Subnet("pods", podSpec, topology.DHCP{MTU: 1400, Servers: []netip.Addr{dns, dns6}, Search: []string{"svc.cluster.local", "cluster.local"}, Lease: 600})
	options, options6 := subnet.DHCPv4, subnet.DHCPv6
	options.UUID, options6.UUID = "dhcp", "dhcp6"
	for _, o := range []*nbdb.DHCPOptions{options, options6} {
		maps.DeleteFunc(o.Options, func(_, v string) bool { return v == "" })
	}
	rows := topology.Node(n.Name, joinOf(1))
	lsp := served.lsp(n.Name)
	lsp.Dhcpv4Options, lsp.Dhcpv6Options = &options.UUID, &options6.UUID
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(ports{nodes: []*nbdb.LogicalSwitchPort{rows.Port}, egress: rows.Egress, pods: []*nbdb.LogicalSwitchPort{lsp, bare.lsp(n.Name)}, more: []model.Model{options, options6}})
	n.start()
	n.waitReady(t)
	for _, p := range []*testPod{served, bare} {
		attach(t, n, p)
	}
	var offer, ack *dhcpv4.DHCPv4
	eventually(t, "a lease", func() (err error) { offer, ack, err = ask(served); return err })
	router := net.IP(podSpec.Gateways[0].AsSlice())
	for what, is := range map[string]bool{
		"address":  ack.YourIPAddr.Equal(served.id.IPs[0].Addr().AsSlice()),
		"netmask":  fmt.Sprint(ack.SubnetMask()) == fmt.Sprint(net.CIDRMask(served.id.IPs[0].Bits(), 32)),
		"router":   len(ack.Router()) == 1 && ack.Router()[0].Equal(router),
		"server":   ack.ServerIdentifier().Equal(router),
		"lease":    ack.IPAddressLeaseTime(0) == 10*time.Minute,
		"DNS":      len(ack.DNS()) == 1 && ack.DNS()[0].Equal(dns.AsSlice()),
		"search":   ack.DomainSearch() != nil && fmt.Sprint(ack.DomainSearch().Labels) == "[svc.cluster.local cluster.local]",
		"MTU":      bytes.Equal(ack.Options.Get(dhcpv4.OptionInterfaceMTU), []byte{1400 >> 8, 1400 & 0xff}),
		"an offer": offer.MessageType() == dhcpv4.MessageTypeOffer && ack.MessageType() == dhcpv4.MessageTypeAck,
	} {
		if !is {
			t.Errorf("the %s is not as the Subnet says: %s", what, ack.Summary())
		}
	}
	var advertised *dhcpv6.Message
	eventually(t, "an advertisement of DHCPv6", func() (err error) { advertised, err = ask6(served); return err })
	said := advertised.Options
	for what, is := range map[string]bool{
		"IPv6 address": said.OneIANA() != nil && len(said.OneIANA().Options.Addresses()) == 1 && said.OneIANA().Options.Addresses()[0].IPv6Addr.Equal(served.id.IPs[1].Addr().AsSlice()),
		"DNS":          len(said.DNS()) == 1 && said.DNS()[0].Equal(dns6.AsSlice()),
		"search":       said.DomainSearchList() == nil, // OVN would say all domains as one label
	} {
		if !is {
			t.Errorf("by DHCPv6 the %s is not as it is to be: %s", what, advertised.Summary())
		}
	}
	if _, ack, err := ask(bare); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the client behind a port without DHCPv4 has %v (%v), want no answer", ack, err)
	}
}

// onWire opens a packet socket on a pod's interface, whose reads end after a second.
func onWire(p *testPod, protocol uint16, talk func(fd int, link *net.Interface) error) error {
	return p.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(protocol)))
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(time.Second))
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: link.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)); err != nil {
			return err
		}
		return talk(fd, link)
	})
}

// ask asks for an address in a pod: what comes back are the offer and the acknowledgement.
func ask(p *testPod) (offer, ack *dhcpv4.DHCPv4, err error) {
	err = onWire(p, unix.ETH_P_IP, func(fd int, link *net.Interface) error {
		wanted := dhcpv4.WithRequestedOptions(dhcpv4.OptionInterfaceMTU, dhcpv4.OptionDNSDomainSearchList)
		discover, err := dhcpv4.NewDiscovery(link.HardwareAddr, wanted)
		if err != nil {
			return err
		}
		if offer, err = exchange(fd, link.HardwareAddr, discover); err != nil {
			return err
		}
		request, err := dhcpv4.NewRequestFromOffer(offer, wanted)
		if err != nil {
			return err
		}
		ack, err = exchange(fd, link.HardwareAddr, request)
		return err
	})
	return offer, ack, err
}

// ask6 asks for an address by DHCPv6 in a pod, and returns what is advertised.
func ask6(p *testPod) (advertised *dhcpv6.Message, err error) {
	err = onWire(p, unix.ETH_P_IPV6, func(fd int, link *net.Interface) error {
		solicit, err := dhcpv6.NewSolicit(link.HardwareAddr, dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList))
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, solicitation(link.HardwareAddr, solicit.ToBytes())); err != nil {
			return fmt.Errorf("send %s: %w", solicit.MessageType, err)
		}
		for buf := make([]byte, 2048); ; {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return fmt.Errorf("wait for the answer to %s: %w", solicit.MessageType, err)
			}
			if n <= headers6 || buf[20] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(buf[56:]) != dhcpv6.DefaultClientPort {
				continue
			}
			if advertised, err = dhcpv6.MessageFromBytes(buf[headers6:n]); err == nil && advertised.TransactionID == solicit.TransactionID {
				return nil
			}
		}
	})
	return advertised, err
}

const headers6 = 14 + 40 + 8

// solicitation is a frame with a message to all DHCPv6 servers from the link-local address of a MAC.
func solicitation(mac net.HardwareAddr, payload []byte) []byte {
	frame := make([]byte, headers6, headers6+len(payload))
	copy(frame, []byte{0x33, 0x33, 0, 1, 0, 2})
	copy(frame[6:], mac)
	copy(frame[12:], []byte{0x86, 0xdd, 0x60})
	length := uint16(8 + len(payload))
	binary.BigEndian.PutUint16(frame[18:], length)
	frame[20], frame[21] = unix.IPPROTO_UDP, 1
	copy(frame[22:], []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	copy(frame[38:], dhcpv6.AllDHCPRelayAgentsAndServers)
	for i, v := range []uint16{dhcpv6.DefaultClientPort, dhcpv6.DefaultServerPort, length, 0} {
		binary.BigEndian.PutUint16(frame[54+2*i:], v)
	}
	frame = append(frame, payload...)
	sum := uint32(unix.IPPROTO_UDP) + uint32(length)
	for i := 22; i < len(frame); i += 2 {
		sum += uint32(frame[i]) << 8
		if i+1 < len(frame) {
			sum += uint32(frame[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(frame[60:], ^uint16(sum))
	return frame
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// exchange broadcasts a message and returns what answers it; the error wraps EAGAIN where nothing does.
func exchange(fd int, mac net.HardwareAddr, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	const headers = 14 + 20 + 8
	payload := m.ToBytes()
	frame := make([]byte, headers, headers+len(payload))
	for i := range 6 {
		frame[i] = 0xff
	}
	copy(frame[6:], mac)
	copy(frame[12:], []byte{0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP})
	copy(frame[30:34], net.IPv4bcast.To4())
	binary.BigEndian.PutUint16(frame[16:], uint16(20+8+len(payload)))
	sum := uint32(0)
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(frame[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(frame[24:], ^uint16(sum))
	for i, v := range []uint16{dhcpv4.ClientPort, dhcpv4.ServerPort, uint16(8 + len(payload)), 0} { // without a checksum
		binary.BigEndian.PutUint16(frame[34+2*i:], v)
	}
	if _, err := unix.Write(fd, append(frame, payload...)); err != nil {
		return nil, fmt.Errorf("send %s: %w", m.MessageType(), err)
	}
	for buf := make([]byte, 2048); ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return nil, fmt.Errorf("wait for the answer to %s: %w", m.MessageType(), err)
		}
		if n <= headers || buf[14] != 0x45 || buf[23] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(buf[36:]) != dhcpv4.ClientPort {
			continue
		}
		answer, err := dhcpv4.FromBytes(buf[headers:n])
		if err == nil && answer.TransactionID == m.TransactionID && answer.OpCode == dhcpv4.OpcodeBootReply {
			return answer, nil
		}
	}
}

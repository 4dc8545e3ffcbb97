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
	"github.com/ovn-kubernetes/libovsdb/model"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// TestLifecycleDHCPAnswers: real OVN gives the client behind a port whose row names the Subnet's DHCPv4 options the port's own address and all that those say. The client
// behind one without gets no answer.
func TestLifecycleDHCPAnswers(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	n := newTestNode(t, c, "one", 1)
	served, bare := newTestPod(t, "served", 1), newTestPod(t, "bare", 2)
	dns := netip.MustParseAddr("10.96.0.10")
	options := topology.Subnet("pods", podSpec, topology.DHCP{MTU: 1400, Servers: []netip.Addr{dns}, Search: []string{"svc.cluster.local", "cluster.local"}, Lease: 600}).DHCPv4
	options.UUID = "dhcp"
	maps.DeleteFunc(options.Options, func(_, v string) bool { return v == "" })
	rows := topology.Node(n.Name, joinOf(1))
	lsp := served.lsp(n.Name)
	lsp.Dhcpv4Options = &options.UUID
	nb := &northbound{t: t}
	nb.connect(c)
	nb.write(ports{nodes: []*nbdb.LogicalSwitchPort{rows.Port}, egress: rows.Egress, pods: []*nbdb.LogicalSwitchPort{lsp, bare.lsp(n.Name)}, more: []model.Model{options}})
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
	if _, ack, err := ask(bare); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the client behind a port without DHCPv4 has %v (%v), want no answer", ack, err)
	}
}

// ask asks for an address in a pod: what comes back are the offer and the acknowledgement.
func ask(p *testPod) (offer, ack *dhcpv4.DHCPv4, err error) {
	err = p.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(time.Second))
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: link.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)); err != nil {
			return err
		}
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

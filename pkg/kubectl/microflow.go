package kubectl

import (
	"fmt"
	"net"
	"net/netip"
)

// Protocols that can be traced.
const (
	protocolTCP  = "tcp"
	protocolUDP  = "udp"
	protocolICMP = "icmp"
)

// clientPort is the source port of what is traced: one that clients use.
const clientPort = 40000

// microflow is the first packet of a connection, as it comes from a port.
type microflow struct {
	inport   string
	srcMAC   net.HardwareAddr
	dstMAC   net.HardwareAddr
	src, dst netip.Addr
	protocol string
	port     uint16
}

// expression is the packet as ovn-trace(8) takes it.
func (m microflow) expression() string {
	ip, icmp := "ip4", "icmp4.type == 8 && icmp4.code == 0"
	if m.dst.Is6() {
		ip, icmp = "ip6", "icmp6.type == 128 && icmp6.code == 0"
	}
	what := icmp
	if m.protocol != protocolICMP {
		what = fmt.Sprintf("%s && %s.src == %d && %s.dst == %d", m.protocol, m.protocol, clientPort, m.protocol, m.port)
	}
	return fmt.Sprintf("inport == %q && eth.src == %s && eth.dst == %s && %s.src == %s && %s.dst == %s && ip.ttl == 64 && %s", m.inport, m.srcMAC, m.dstMAC, ip, m.src, ip, m.dst, what)
}

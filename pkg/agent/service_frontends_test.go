package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/service"
)

func TestFrontends(t *testing.T) {
	end := func(addr, node, anchor string) service.Endpoint {
		return service.Endpoint{Addr: netip.MustParseAddrPort(addr), Node: node, Anchor: anchor}
	}
	here, there := end("10.244.0.5:8080", "one", "one"), end("10.244.1.5:8080", "two", "two")
	vm := end("10.244.0.7:8080", "two", "one")    // it runs on two, and leaves through one
	moved := end("10.244.0.8:8080", "one", "two") // it runs on one, and leaves through two
	six := end("[fd00::5]:8080", "one", "one")
	vips := []service.VIP{
		{Kind: service.ClusterIP, Addr: netip.MustParseAddr("10.96.0.1")}, {Kind: service.ExternalIP, Addr: netip.MustParseAddr("192.0.2.9")},
		{Kind: service.LoadBalancer, Addr: netip.MustParseAddr("198.51.100.7")},
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	port := func(nodePort uint16, endpoints ...service.Endpoint) service.Port {
		return service.Port{Protocol: corev1.ProtocolTCP, Number: 80, NodePort: nodePort, VIPs: vips, Endpoints: endpoints}
	}
	for _, c := range []struct {
		name string
		svc  service.Service
		want string
	}{
		{"cluster scope", service.Service{IPv4: true, Sources: ranges, Ports: []service.Port{port(30080, here, there)}}, `
0.0.0.0:30080 all 10.244.0.5:8080 10.244.1.5:8080
10.96.0.1:80 all 10.244.0.5:8080 10.244.1.5:8080
192.0.2.9:80 all 10.244.0.5:8080 10.244.1.5:8080
198.51.100.7:80 all 10.244.0.5:8080 10.244.1.5:8080 from [203.0.113.0/24]`},
		{"external scope, also by anchor", service.Service{IPv4: true, External: service.Local, Ports: []service.Port{port(30080, here, vm, there)}}, `
0.0.0.0:30080 all 10.244.0.5:8080 10.244.0.7:8080 10.244.1.5:8080 outside 10.244.0.5:8080 10.244.0.7:8080
10.96.0.1:80 all 10.244.0.5:8080 10.244.0.7:8080 10.244.1.5:8080
192.0.2.9:80 all 10.244.0.5:8080 10.244.0.7:8080 10.244.1.5:8080 outside 10.244.0.5:8080 10.244.0.7:8080
198.51.100.7:80 all 10.244.0.5:8080 10.244.0.7:8080 10.244.1.5:8080 outside 10.244.0.5:8080 10.244.0.7:8080`},
		{"external scope, nothing here but a VM that moved here", service.Service{IPv4: true, External: service.Local, Ports: []service.Port{port(30080, moved, there)}}, `
0.0.0.0:30080 all 10.244.0.8:8080 10.244.1.5:8080
10.96.0.1:80 all 10.244.0.8:8080 10.244.1.5:8080
192.0.2.9:80 all 10.244.0.8:8080 10.244.1.5:8080
198.51.100.7:80 all 10.244.0.8:8080 10.244.1.5:8080`},
		{"external scope, a VM that moved here beside a pod", service.Service{IPv4: true, External: service.Local, Ports: []service.Port{port(30080, moved, here)}}, `
0.0.0.0:30080 all 10.244.0.8:8080 10.244.0.5:8080 outside 10.244.0.5:8080
10.96.0.1:80 all 10.244.0.8:8080 10.244.0.5:8080
192.0.2.9:80 all 10.244.0.8:8080 10.244.0.5:8080 outside 10.244.0.5:8080
198.51.100.7:80 all 10.244.0.8:8080 10.244.0.5:8080 outside 10.244.0.5:8080`},
		{"external scope, none here", service.Service{IPv4: true, External: service.Local, Ports: []service.Port{port(0, there)}}, `
10.96.0.1:80 all 10.244.1.5:8080
192.0.2.9:80 all 10.244.1.5:8080 outside dropped
198.51.100.7:80 all 10.244.1.5:8080 outside dropped`},
		{"internal scope", service.Service{IPv4: true, Internal: service.Local, Ports: []service.Port{port(30080, here, vm)}}, `
0.0.0.0:30080 all 10.244.0.5:8080 10.244.0.7:8080
10.96.0.1:80 all 10.244.0.5:8080
192.0.2.9:80 all 10.244.0.5:8080 10.244.0.7:8080
198.51.100.7:80 all 10.244.0.5:8080 10.244.0.7:8080`},
		{"internal scope, none here", service.Service{IPv4: true, Internal: service.Local, Ports: []service.Port{{Protocol: corev1.ProtocolTCP, Number: 80, VIPs: vips[:1], Endpoints: []service.Endpoint{vm}}}}, `
10.96.0.1:80 all dropped`},
		{"none anywhere", service.Service{IPv4: true, Internal: service.Local, External: service.Local, Ports: []service.Port{port(30080)}}, `
0.0.0.0:30080 all refused outside refused
10.96.0.1:80 all refused
192.0.2.9:80 all refused outside refused
198.51.100.7:80 all refused outside refused`},
		{"both families, affinity", service.Service{IPv4: true, IPv6: true, Affinity: time.Hour, Ports: []service.Port{{Protocol: corev1.ProtocolTCP, NodePort: 30080, Endpoints: []service.Endpoint{here, six}}}}, `
0.0.0.0:30080 all 10.244.0.5:8080 for 1h0m0s
[::]:30080 all [fd00::5]:8080 for 1h0m0s`},
		{"a protocol that nobody balances", service.Service{IPv4: true, Ports: []service.Port{{Protocol: "ICMP", Number: 80, VIPs: vips}}}, ""},
	} {
		if d := cmp.Diff(strings.TrimSpace(c.want), frontendText(frontends(c.svc, "one"))); d != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, d)
		}
	}
}

// frontendText is a line for each frontend.
func frontendText(all map[netdev.Frontend]netdev.Balance) string {
	choice := func(c netdev.Choice) string {
		if len(c.Backends) == 0 {
			return map[bool]string{true: "dropped", false: "refused"}[c.Silent]
		}
		var out []string
		for _, b := range c.Backends {
			out = append(out, b.String())
		}
		return strings.Join(out, " ")
	}
	lines := map[string]struct{}{}
	for f, b := range all {
		line := fmt.Sprintf("%s all %s", netip.AddrPortFrom(f.Addr, f.Port), choice(b.All))
		if b.Outside != nil {
			line += " outside " + choice(*b.Outside)
		}
		if b.Affinity > 0 {
			line += " for " + b.Affinity.String()
		}
		if b.Sources != nil {
			line += fmt.Sprintf(" from %v", b.Sources)
		}
		lines[line] = struct{}{}
	}
	return strings.Join(slices.Sorted(maps.Keys(lines)), "\n")
}

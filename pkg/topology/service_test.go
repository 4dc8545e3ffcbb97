package topology

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/service"
)

func aService(change ...func(*service.Service)) service.Service {
	end := func(text, node string) service.Endpoint {
		return service.Endpoint{Addr: netip.MustParseAddrPort(text), Node: node, Anchor: node}
	}
	s := service.Service{
		Key: service.Key{Namespace: "shop", Name: "web"}, UID: "u", IPv4: true, IPv6: true,
		Ports: []service.Port{{
			Name: "http", Protocol: corev1.ProtocolTCP, Number: 80,
			VIPs:      []service.VIP{{Kind: service.ClusterIP, Addr: netip.MustParseAddr("10.96.0.1")}, {Kind: service.ClusterIP, Addr: netip.MustParseAddr("fd96::1")}},
			Endpoints: []service.Endpoint{end("10.0.0.1:8080", "n1"), end("10.0.0.2:8080", "n2"), end("[fd00::1]:8080", "n1")},
		}},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func vips(lb *nbdb.LoadBalancer) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(lb.Vips)) {
		out = append(out, k+"="+lb.Vips[k])
	}
	return strings.Join(out, " ")
}

func TestServiceRows(t *testing.T) {
	external := func(kind service.Kind) func(*service.Service) {
		return func(s *service.Service) {
			s.Ports[0].VIPs = append(s.Ports[0].VIPs, service.VIP{Kind: kind, Addr: netip.MustParseAddr("192.0.2.1")})
		}
	}
	const plain = "10.96.0.1:80=10.0.0.1:8080,10.0.0.2:8080 [fd96::1]:80=[fd00::1]:8080"
	for name, c := range map[string]struct {
		change []func(*service.Service)
		want   map[string]string
	}{
		"both families in one row": {nil, map[string]string{"service/shop/web/tcp": plain}},
		"a row for each protocol": {[]func(*service.Service){func(s *service.Service) {
			udp, sctp, other := s.Ports[0], s.Ports[0], s.Ports[0]
			udp.Protocol, sctp.Protocol, other.Number = corev1.ProtocolUDP, corev1.ProtocolSCTP, 81
			udp.VIPs, sctp.VIPs, other.VIPs = udp.VIPs[:1], udp.VIPs[:1], udp.VIPs[1:]
			s.Ports = append(s.Ports, udp, sctp, other)
		}}, map[string]string{
			"service/shop/web/tcp":  plain + " [fd96::1]:81=[fd00::1]:8080",
			"service/shop/web/udp":  "10.96.0.1:80=10.0.0.1:8080,10.0.0.2:8080",
			"service/shop/web/sctp": "10.96.0.1:80=10.0.0.1:8080,10.0.0.2:8080",
		}},
		"nothing behind it: refused":  {[]func(*service.Service){func(s *service.Service) { s.Ports[0].Endpoints = nil }}, map[string]string{"service/shop/web/tcp": "10.96.0.1:80= [fd96::1]:80="}},
		"nothing of one family":       {[]func(*service.Service){func(s *service.Service) { s.Ports[0].Endpoints = s.Ports[0].Endpoints[:1] }}, map[string]string{"service/shop/web/tcp": "10.96.0.1:80=10.0.0.1:8080 [fd96::1]:80="}},
		"no address":                  {[]func(*service.Service){func(s *service.Service) { s.Ports[0].VIPs = nil }}, map[string]string{}},
		"externalIP, Local or not":    {[]func(*service.Service){external(service.ExternalIP), func(s *service.Service) { s.External = service.Local }}, map[string]string{"service/shop/web/tcp": "10.96.0.1:80=10.0.0.1:8080,10.0.0.2:8080 192.0.2.1:80=10.0.0.1:8080,10.0.0.2:8080 [fd96::1]:80=[fd00::1]:8080"}},
		"load balancer from anywhere": {[]func(*service.Service){external(service.LoadBalancer)}, map[string]string{"service/shop/web/tcp": "10.96.0.1:80=10.0.0.1:8080,10.0.0.2:8080 192.0.2.1:80=10.0.0.1:8080,10.0.0.2:8080 [fd96::1]:80=[fd00::1]:8080"}},
		"load balancer, restricted":   {[]func(*service.Service){external(service.LoadBalancer), func(s *service.Service) { s.Sources = []netip.Prefix{} }}, map[string]string{"service/shop/web/tcp": plain}},
		"Local, nothing behind it":    {[]func(*service.Service){func(s *service.Service) { s.Internal, s.Ports[0].Endpoints = service.Local, nil }}, map[string]string{"service/shop/web/tcp": "10.96.0.1:80= [fd96::1]:80="}},
	} {
		t.Run(name, func(t *testing.T) {
			rows := Service(aService(c.change...))
			got := map[string]string{}
			for _, lb := range rows.LoadBalancers {
				got[lb.Name] = vips(lb)
				if want := lb.Name[strings.LastIndex(lb.Name, "/")+1:]; *lb.Protocol != want {
					t.Errorf("%s has protocol %s", lb.Name, *lb.Protocol)
				}
				if lb.Options["reject"] != "true" || lb.Options["template"] != "" || lb.ExternalIDs[ident.OwnerKey] != ident.OwnerService || lb.ExternalIDs[ident.KeyUID] != "u" {
					t.Errorf("%s has options %v and external_ids %v", lb.Name, lb.Options, lb.ExternalIDs)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("vips (-want +got):\n%s", d)
			}
			if len(rows.Variables)+len(rows.Local) > 0 {
				t.Errorf("a Service without internalTrafficPolicy Local has %v, %v", rows.Variables, rows.Local)
			}
		})
	}
}

func TestAffinityOfServices(t *testing.T) {
	for in, want := range map[time.Duration]int{0: 0, 10 * time.Second: 2, 24 * time.Hour: 2} {
		rows := Service(aService(func(s *service.Service) { s.Affinity = in }))
		if got := rows.LoadBalancers[0].SelectionFields; len(got) != want {
			t.Errorf("affinity of %s: selection_fields %v, want %d", in, got, want)
		}
	}
}

func TestLocalServiceRows(t *testing.T) {
	rows := Service(aService(func(s *service.Service) { s.Internal, s.Affinity = service.Local, time.Minute }))
	if len(rows.LoadBalancers) != 2 {
		t.Fatalf("%d load balancers, want one a family", len(rows.LoadBalancers))
	}
	v4, v6 := rows.LoadBalancers[0], rows.LoadBalancers[1]
	if v4.Name != "service/shop/web/tcp/local/ip4" || v6.Name != "service/shop/web/tcp/local/ip6" || *v4.Protocol != "tcp" {
		t.Errorf("names %s, %s", v4.Name, v6.Name)
	}
	if v4.Options["template"] != "true" || v4.Options["address-family"] != "ipv4" || v6.Options["address-family"] != "ipv6" || len(v4.SelectionFields) != 2 {
		t.Errorf("options %v, %v", v4.Options, v6.Options)
	}
	// expand is what a chassis makes of a template.
	expand := func(lb *nbdb.LoadBalancer, chassis ident.ChassisName) string {
		text := vips(lb)
		for name, value := range rows.Variables[chassis] {
			if a, err := netip.ParseAddr(value); err == nil && a.Is6() {
				value = "[" + value + "]"
			}
			text = strings.ReplaceAll(text, "^"+name, value)
		}
		return text
	}
	if got, want := expand(v4, "n1"), "10.96.0.1:80=10.0.0.1:8080"; got != want {
		t.Errorf("on n1 %s, want %s", got, want)
	}
	if got, want := expand(v4, "n2"), "10.96.0.1:80=10.0.0.2:8080"; got != want {
		t.Errorf("on n2 %s, want %s", got, want)
	}
	if got, want := expand(v6, "n1"), "[fd96::1]:80=[fd00::1]:8080"; got != want {
		t.Errorf("on n1 %s, want %s", got, want)
	}
	if got := expand(v6, "n2"); !strings.HasPrefix(got, "^godwit_") {
		t.Errorf("n2 has no endpoint of IPv6, and %s", got)
	}
	if len(rows.Variables["n1"]) != 4 || len(rows.Variables["n2"]) != 2 || len(rows.Variables) != 2 {
		t.Errorf("variables %v", rows.Variables)
	}
	if d := cmp.Diff([]string{"10.96.0.1", "fd96::1"}, []string{rows.Local[0].String(), rows.Local[1].String()}); d != "" {
		t.Error(d)
	}
	for name := range rows.Variables["n1"] {
		if !ident.IsTemplateVar(name) || strings.ContainsAny(name, "-./ ") {
			t.Errorf("%q is no name of a variable", name)
		}
	}
}

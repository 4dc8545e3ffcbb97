package service

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestServicesThatAreNotServed(t *testing.T) {
	for name, change := range map[string]func(*corev1.Service){
		"headless":                   func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} },
		"ExternalName":               func(s *corev1.Service) { s.Spec.Type, s.Spec.ClusterIP = corev1.ServiceTypeExternalName, "" },
		"without an address yet":     func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil },
		"of another proxy":           func(s *corev1.Service) { s.Labels = map[string]string{ProxyLabel: "other"} },
		"of another one, not named":  func(s *corev1.Service) { s.Labels = map[string]string{ProxyLabel: ""} },
		"that was served, then not":  func(s *corev1.Service) { s.Labels = map[string]string{ProxyLabel: "late"} },
		"ExternalName with old rest": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
	} {
		t.Run(name, func(t *testing.T) {
			x := New()
			x.Set(aService(), slices1("10.244.0.1 n1 ready"))
			want(t, "first", x.Take(), []Key{web})
			x.Set(aService(change), slices1("10.244.0.1 n1 ready"))
			want(t, "told as changed", x.Take(), []Key{web})
			if s, ok := x.Service(web); ok {
				t.Errorf("it is served: %+v", s)
			}
			want(t, "leftovers", []int{len(x.entries), len(x.users), len(x.claims)}, []int{0, 0, 0})
		})
	}
}

func TestWhatAServiceSays(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	local, cluster := corev1.ServiceInternalTrafficPolicyLocal, corev1.ServiceInternalTrafficPolicyCluster
	dual := func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.10", "fd96::10"} }
	cases := map[string]struct {
		change []func(*corev1.Service)
		want   func(*Service)
	}{
		"a ClusterIP": {nil, func(*Service) {}},
		"both families": {[]func(*corev1.Service){dual}, func(s *Service) {
			s.IPv6, s.Ports[0].VIPs = true, []VIP{{ClusterIP, addr("10.96.0.10")}, {ClusterIP, addr("fd96::10")}}
		}},
		"a family that it does not have": {[]func(*corev1.Service){func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1", "2001:db8::1"} }}, func(s *Service) {
			s.Ports[0].VIPs = []VIP{{ClusterIP, addr("10.96.0.10")}, {ExternalIP, addr("192.0.2.1")}}
		}},
		"an address twice": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"192.0.2.1", "10.96.0.10", "::ffff:192.0.2.1"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		}}, func(s *Service) { s.Ports[0].VIPs = append(s.Ports[0].VIPs, VIP{ExternalIP, addr("192.0.2.1")}) }},
		"load balancer addresses": {[]func(*corev1.Service){dual, func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "2001:db8::9"}, {IP: "192.0.2.9", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}, {IP: "192.0.2.10", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
			}
		}}, func(s *Service) {
			s.IPv6 = true
			s.Ports[0].VIPs = []VIP{{ClusterIP, addr("10.96.0.10")}, {ClusterIP, addr("fd96::10")}, {LoadBalancer, addr("192.0.2.9")}, {LoadBalancer, addr("2001:db8::9")}}
		}},
		"traffic policies": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = &local, corev1.ServiceExternalTrafficPolicyLocal, 30999
		}}, func(s *Service) { s.Internal, s.External, s.HealthCheckPort = Local, Local, 30999 }},
		"traffic policies Cluster": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy = &cluster, corev1.ServiceExternalTrafficPolicyCluster
		}}, func(*Service) {}},
		"affinity": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(7))}}
		}}, func(s *Service) { s.Affinity = 7 * time.Second }},
		"affinity without a time": {[]func(*corev1.Service){func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }}, func(s *Service) { s.Affinity = 3 * time.Hour }},
		"sources, padded": {[]func(*corev1.Service){func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{" 192.0.2.1/24 "} }}, func(s *Service) {
			s.Sources = []netip.Prefix{prefix("192.0.2.0/24")}
		}},
		"sources within each other": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"10.1.0.0/16", "10.0.0.0/8", "2001:db8::/32", "10.0.0.0/16", "11.0.0.0/8", "2001:db8::1/128", "10.0.0.0/8"}
		}}, func(s *Service) {
			s.Sources = []netip.Prefix{prefix("10.0.0.0/8"), prefix("11.0.0.0/8"), prefix("2001:db8::/32")}
		}},
		"ports": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, NodePort: 30053}, {Name: "dns-tcp", Port: 53}}
		}}, func(s *Service) {
			vips := s.Ports[0].VIPs
			s.Ports = []Port{{Name: "dns", Protocol: corev1.ProtocolUDP, Number: 53, NodePort: 30053, VIPs: vips}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Number: 53, VIPs: vips}}
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x := New()
			x.Set(aService(c.change...), nil)
			x.Take()
			expected := Service{Key: web, IPv4: true, Ports: []Port{{Name: "http", Protocol: corev1.ProtocolTCP, Number: 80, VIPs: []VIP{{ClusterIP, addr("10.96.0.10")}}}}}
			c.want(&expected)
			got, _ := x.Service(web)
			want(t, "Service", got, expected)
			want(t, "problems", len(x.Problems(web)), 0)
		})
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	x := New()
	x.Set(aService(func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{"192.0.2.01", "192.0.2.1"}
		s.Spec.LoadBalancerSourceRanges = []string{"anywhere"}
	}), nil)
	x.Take()
	s, _ := x.Service(web)
	want(t, "addresses", len(s.Ports[0].VIPs), 2)
	if s.Sources == nil || len(s.Sources) != 0 {
		t.Errorf("sources are %#v: a range that cannot be read must admit nobody", s.Sources)
	}
	problems := x.Problems(web)
	if len(problems) != 2 || problems[0].Reason != ReasonInvalid || !strings.Contains(problems[0].Message+problems[1].Message, "192.0.2.01") {
		t.Errorf("problems are %+v: want one of each field", problems)
	}
}

// Whoever may write a status must not get all of a node's addresses, or its loopback.
func TestAddressesOfNoUse(t *testing.T) {
	x := New()
	x.Set(aService(func(s *corev1.Service) {
		for _, ip := range []string{"0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1", "::ffff:127.0.0.1"} {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
	}), nil)
	x.Take()
	s, _ := x.Service(web)
	want(t, "addresses", s.Ports[0].VIPs, []VIP{{ClusterIP, netip.MustParseAddr("10.96.0.10")}})
	want(t, "problems", len(x.Problems(web)), 5)
}

func TestServesFamilies(t *testing.T) {
	s := Service{IPv6: true}
	if s.Serves(netip.MustParseAddr("192.0.2.1")) || !s.Serves(netip.MustParseAddr("2001:db8::1")) {
		t.Error("an IPv6 Service must serve IPv6 alone")
	}
}

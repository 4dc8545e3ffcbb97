package service

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestEndpoints(t *testing.T) {
	conditions := func(c discoveryv1.EndpointConditions) []*discoveryv1.EndpointSlice {
		s := slice("10.244.0.1 n1 ready")
		s.Endpoints[0].Conditions = c
		return []*discoveryv1.EndpointSlice{s}
	}
	yes, no := ptr(true), ptr(false)
	for name, c := range map[string]struct {
		slices []*discoveryv1.EndpointSlice
		want   []string
	}{
		"none":            {nil, []string{}},
		"an empty slice":  {slices1(), []string{}},
		"each state":      {slices1("10.244.0.1 n1 ready", "10.244.0.2 n1 unready", "10.244.0.3 n2 ending", "10.244.0.4 n2 gone"), []string{"10.244.0.1:8080 n1", "10.244.0.3:8080 n2 ending"}},
		"several slices":  {[]*discoveryv1.EndpointSlice{slice("10.244.0.2 n2 ready"), slice("10.244.0.1 n1 ready"), slice("fd00::1 n1 ready")}, []string{"10.244.0.1:8080 n1", "10.244.0.2:8080 n2", "[fd00::1]:8080 n1"}},
		"twice, one dead": {[]*discoveryv1.EndpointSlice{slice("10.244.0.1 n1 ready"), slice("10.244.0.1 n2 gone")}, []string{"10.244.0.1:8080 n1"}},
		"twice, one ends": {[]*discoveryv1.EndpointSlice{slice("10.244.0.1 n2 ending"), slice("10.244.0.1 n3 ready")}, []string{"10.244.0.1:8080 n3"}},
		"twice, equal":    {[]*discoveryv1.EndpointSlice{slice("10.244.0.1 n2 ready"), slice("10.244.0.1 n1 ready")}, []string{"10.244.0.1:8080 n1"}},
		"all left out":    {conditions(discoveryv1.EndpointConditions{}), []string{"10.244.0.1:8080 n1"}},
		"ready and terminating, as publishNotReadyAddresses makes it": {conditions(discoveryv1.EndpointConditions{Ready: yes, Terminating: yes}), []string{"10.244.0.1:8080 n1"}},
		"terminating, serving left out":                               {conditions(discoveryv1.EndpointConditions{Ready: no, Terminating: yes}), []string{"10.244.0.1:8080 n1 ending"}},
		"serving, neither ready nor terminating":                      {conditions(discoveryv1.EndpointConditions{Ready: no, Serving: yes}), []string{}},
		"outside of the cluster":                                      {slices1("192.0.2.7 n1 ready"), []string{"192.0.2.7:8080 n1"}},
		"two addresses, of which the first counts": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.1 n1 ready")
			s.Endpoints[0].Addresses = append(s.Endpoints[0].Addresses, "10.244.0.2")
			return []*discoveryv1.EndpointSlice{s}
		}(), []string{"10.244.0.1:8080 n1"}},
		"no node": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.1 n1 ready")
			s.Endpoints[0].NodeName = nil
			return []*discoveryv1.EndpointSlice{s}
		}(), []string{"10.244.0.1:8080 "}},
		"another port": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.1 n1 ready")
			s.Ports[0].Name = ptr("metrics")
			return []*discoveryv1.EndpointSlice{s}
		}(), []string{}},
		"another protocol": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.1 n1 ready")
			s.Ports[0].Protocol = ptr(corev1.ProtocolUDP)
			return []*discoveryv1.EndpointSlice{s}
		}(), []string{}},
		"the name at two numbers": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.2 n1 ready")
			s.Ports[0].Port = ptr(int32(9090))
			return []*discoveryv1.EndpointSlice{s, slice("10.244.0.1 n1 ready")}
		}(), []string{"10.244.0.1:8080 n1", "10.244.0.2:9090 n1"}},
		"what no API server admits": {func() []*discoveryv1.EndpointSlice {
			s := slice("10.244.0.1 n1 ready", "10.244.0.2 n1 ready")
			s.Endpoints[0].Addresses, s.Endpoints[1].Addresses = []string{"somewhere"}, nil
			names := slice("10.244.0.1 n1 ready")
			names.AddressType = discoveryv1.AddressTypeFQDN
			none := slice("10.244.0.1 n1 ready")
			none.Ports[0].Port = nil
			return []*discoveryv1.EndpointSlice{s, names, none}
		}(), []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			x := New()
			x.Set(aService(), c.slices)
			x.Take()
			want(t, "endpoints", endpointsOf(t, x, web), c.want)
		})
	}
}

func TestWhereAConnectionGoes(t *testing.T) {
	for name, c := range map[string]struct {
		endpoints       []string
		any, on1, on2   int
		health1         int
		firstAny, first string
	}{
		"nothing":              {nil, 0, 0, 0, 0, "", ""},
		"here and there":       {[]string{"10.0.0.1 n1 ready", "10.0.0.2 n2 ready"}, 2, 1, 1, 1, "10.0.0.1:8080", "10.0.0.1:8080"},
		"only there":           {[]string{"10.0.0.2 n2 ready"}, 1, 0, 1, 0, "10.0.0.2:8080", ""},
		"ends here, not there": {[]string{"10.0.0.1 n1 ending", "10.0.0.2 n2 ready"}, 1, 1, 1, 0, "10.0.0.2:8080", "10.0.0.1:8080"},
		"ends everywhere":      {[]string{"10.0.0.1 n1 ending", "10.0.0.2 n2 ending"}, 2, 1, 1, 0, "10.0.0.1:8080", "10.0.0.1:8080"},
		"one ends, one stays":  {[]string{"10.0.0.1 n1 ending", "10.0.0.3 n1 ready"}, 1, 1, 0, 1, "10.0.0.3:8080", "10.0.0.3:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			x := New()
			x.Set(aService(), append(slices1(c.endpoints...), slice("fd00::9 n1 ready")))
			x.Take()
			s, _ := x.Service(web)
			v4, p := netip.IPv4Unspecified(), s.Ports[0]
			want(t, "Any, On n1, On n2, AnchoredAt n1, health of n1", []int{len(p.Any(v4)), len(p.On(v4, "n1")), len(p.On(v4, "n2")), len(p.AnchoredAt(v4, "n1")), s.LocalEndpoints("n1")},
				[]int{c.any, c.on1, c.on2, c.on1, c.health1 + 1})
			if c.any > 0 {
				want(t, "the first", p.Any(v4)[0].String(), c.firstAny)
			}
			if c.on1 > 0 {
				want(t, "the first on n1", p.On(v4, "n1")[0].String(), c.first)
			}
			want(t, "IPv6", len(p.Any(netip.IPv6Unspecified())), 1)
		})
	}
}

func TestHealthCountsAddresses(t *testing.T) {
	x := New()
	s := slice("10.0.0.1 n1 ready")
	s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr("metrics"), Port: ptr(int32(9090))})
	x.Set(aService(func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 90})
	}), []*discoveryv1.EndpointSlice{s})
	x.Take()
	got, _ := x.Service(web)
	want(t, "endpoints of n1", got.LocalEndpoints("n1"), 1)
	want(t, "ports", []int{len(got.Ports[0].Endpoints), len(got.Ports[1].Endpoints)}, []int{1, 1})
}

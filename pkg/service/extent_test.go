package service

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// externalIPs are so many.
func externalIPs(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for i := range n {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, fmt.Sprintf("20.%d.%d.%d", i>>16, i>>8&255, i&255))
		}
	}
}

// somePorts are so many, of the names p0, p1 and so on.
func somePorts(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = nil
		for i := range n {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(i + 1)})
		}
	}
}

// slicesOf are so many EndpointSlices, each of so many endpoints at so many ports, in the order of their names.
func slicesOf(n, endpoints, ports int) []*discoveryv1.EndpointSlice {
	out := make([]*discoveryv1.EndpointSlice, n)
	for i := range out {
		out[i] = slice()
		out[i].Name, out[i].Ports = fmt.Sprintf("s%04d", i), nil
		for p := range ports {
			out[i].Ports = append(out[i].Ports, discoveryv1.EndpointPort{Name: ptr(fmt.Sprintf("p%d", p)), Port: ptr(int32(p + 1))})
		}
		for e := range endpoints {
			out[i].Endpoints = append(out[i].Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", i, e>>8, e&255)}, NodeName: ptr("n1")})
		}
	}
	return out
}

// One Service takes neither the memory nor the time of those of all others: what is beyond bounds is left out, and its ClusterIP goes on.
func TestServiceExtent(t *testing.T) {
	large := []Reason{ReasonTooLarge}
	for name, c := range map[string]struct {
		change                       []func(*corev1.Service)
		slices                       []*discoveryv1.EndpointSlice
		want                         []Reason
		ports, addresses, at, claims int // endpoints at the last port
	}{
		"addresses":                      {[]func(*corev1.Service){externalIPs(80000)}, nil, large, 1, maxAddresses, 0, maxAddresses},
		"ports":                          {[]func(*corev1.Service){somePorts(15000)}, nil, large, maxPorts, 1, 0, maxPorts},
		"ports by addresses":             {[]func(*corev1.Service){somePorts(10000), externalIPs(20000)}, nil, slices.Repeat(large, 2), maxPorts, 2, 0, 2 * maxPorts},
		"some ports, addresses":          {[]func(*corev1.Service){somePorts(2000), externalIPs(500)}, nil, large, 2000, maxFrontends / 2000, 0, 2000 * (maxFrontends / 2000)},
		"ports by endpoints":             {[]func(*corev1.Service){somePorts(15000)}, slicesOf(1, 1000, 15000), slices.Repeat(large, 2), maxPorts, 1, maxBackends / maxPorts, maxPorts},
		"endpoints by addresses":         {[]func(*corev1.Service){somePorts(1), externalIPs(200)}, slicesOf(3, 1000, 1), large, 1, 201, maxBackends / 201, 201},
		"ports that the Service has not": {[]func(*corev1.Service){somePorts(1)}, slicesOf(2, 1000, 15000), nil, 1, 1, 2000, 1},
		"addresses that cannot be read": {[]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.ExternalIPs = slices.Repeat([]string{"anywhere"}, 100000)
		}}, nil, slices.Repeat([]Reason{ReasonInvalid}, maxProblems), 1, 1, 0, 1},
		"as large as one for people is": {[]func(*corev1.Service){somePorts(300), externalIPs(9)}, slicesOf(1, 80, 300), nil, 300, 10, 80, 3000},
		"endpoints of a large one":      {[]func(*corev1.Service){somePorts(10), externalIPs(1)}, slicesOf(12, 1000, 10), nil, 10, 2, 12000, 20},
	} {
		t.Run(name, func(t *testing.T) {
			x := New()
			svc := aService(c.change...)
			spent := costOf(t, func() {
				x.Set(svc, c.slices)
				x.Take()
				x.Set(svc, c.slices)
				x.Take()
			})
			var got []Reason
			for _, p := range x.Problems(web) {
				got = append(got, p.Reason)
			}
			want(t, "problems", got, c.want)
			s, _ := x.Service(web)
			if len(s.Ports) != c.ports || len(x.claims) != c.claims {
				t.Fatalf("%d ports and %d claims, want %d and %d", len(s.Ports), len(x.claims), c.ports, c.claims)
			}
			last := s.Ports[c.ports-1]
			want(t, "addresses and endpoints", []int{len(last.VIPs), len(last.Endpoints)}, []int{c.addresses, c.at})
			want(t, "the first address", last.VIPs[0], VIP{ClusterIP, netip.MustParseAddr("10.96.0.10")})
			spent.within(t, cost{kept: 96 << 20, took: 10 * time.Second})
		})
	}
}

// Other things that are wrong do not hide from all the rest that there are too many.
func TestTooManyProblemsOfAddressesThatAreTaken(t *testing.T) {
	x := New()
	x.Set(aService(externalIPs(200), func(s *corev1.Service) { s.Name, s.Spec.ClusterIPs = "older", []string{"10.96.0.9"} }), nil)
	x.Set(aService(externalIPs(300), func(s *corev1.Service) {
		s.CreationTimestamp.Time = s.CreationTimestamp.Add(time.Hour)
		s.Spec.ExternalIPs = append(slices.Repeat([]string{"nowhere"}, 10), s.Spec.ExternalIPs...)
	}), nil)
	x.Take()
	count := map[Reason]int{}
	for _, p := range x.Problems(web) {
		count[p.Reason]++
	}
	want(t, "problems", count, map[Reason]int{ReasonInvalid: 10, ReasonTooLarge: 1, ReasonTaken: maxProblems - 11})
}

// Which endpoints are left out does not depend on the order in which EndpointSlices are read.
func TestTooManyEndpointsInAnyOrder(t *testing.T) {
	svc, all := aService(somePorts(maxBackends/1000)), slicesOf(2, 1000, maxBackends/1000)
	var first []Endpoint
	for range 2 {
		x := New()
		x.Set(svc, all)
		x.Take()
		s, _ := x.Service(web)
		if first == nil {
			first = s.Ports[0].Endpoints
		}
		if n := len(s.Ports[0].Endpoints); n < 1000 || n >= 2000 || !slices.Equal(s.Ports[0].Endpoints, first) {
			t.Errorf("%d endpoints, want a thousand and not all, the same in any order", n)
		}
		slices.Reverse(all)
	}
}

// Ranges beyond the bound admit nobody.
func TestTooManySources(t *testing.T) {
	x := New()
	x.Set(aService(somePorts(1000), func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {IP: "192.0.2.2"}}
		for i := range 1000 {
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, fmt.Sprintf("30.%d.%d.0/24", i>>8, i&255))
		}
	}), nil)
	x.Take()
	s, _ := x.Service(web)
	want(t, "ranges", len(s.Sources), maxAdmitted/2000)
	want(t, "problem", x.Problems(web)[0].Reason, ReasonTooLarge)
	x.Set(aService(somePorts(1000), func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = []string{"30.0.0.0/24", "30.0.2.0/24"}
	}), nil)
	x.Take()
	want(t, "problems of a few", len(x.Problems(web)), 0)
}

func TestByNodeIsOnOfEachNode(t *testing.T) {
	x := New()
	x.Set(aService(), append(slices1("10.0.0.1 n1 ending", "10.0.0.2 n1 ready", "10.0.0.3 n2 ending", "10.0.0.4 n2 ending", "10.0.0.5 n3 gone"), slice("fd00::9 n4 ready")))
	x.Take()
	s, _ := x.Service(web)
	for _, like := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		on := map[string][]netip.AddrPort{}
		for _, node := range []string{"n1", "n2", "n3", "n4"} {
			if ends := s.Ports[0].On(like, node); len(ends) > 0 {
				on[node] = ends
			}
		}
		if got := s.Ports[0].ByNode(like); fmt.Sprint(got) != fmt.Sprint(on) || len(on) == 0 {
			t.Errorf("%v, want %v", got, on)
		}
	}
}

// cost is what something needs: bytes that stay, and time.
type cost struct {
	kept int64
	took time.Duration
}

func costOf(t *testing.T, do func()) cost {
	t.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	do()
	took := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	c := cost{kept: int64(after.HeapAlloc) - int64(before.HeapAlloc), took: took}
	t.Logf("kept %d KiB, in %v", c.kept>>10, c.took)
	return c
}

func (c cost) within(t *testing.T, limit cost) {
	t.Helper()
	if c.kept > limit.kept || c.took > limit.took {
		t.Errorf("%+v, want at most %+v", c, limit)
	}
}

package service

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// asks is a Service of that name and age in seconds which asks for external addresses.
func asks(name string, age int64, ips ...string) *corev1.Service {
	return aService(func(s *corev1.Service) {
		s.Name, s.CreationTimestamp = name, metav1.NewTime(time.Unix(10000-age, 0))
		s.Spec.ClusterIP = "10.96.1." + map[string]string{"a": "1", "b": "2", "c": "3"}[name]
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		s.Spec.ExternalIPs = ips
	})
}

func served(x *Index, name string) string {
	s, _ := x.Service(Key{"shop", name})
	var out []string
	for _, v := range s.Ports[0].VIPs {
		out = append(out, v.Addr.String())
	}
	return strings.Join(out, " ")
}

func reasons(x *Index, name string) string {
	var out []string
	for _, p := range x.Problems(Key{"shop", name}) {
		out = append(out, string(p.Reason))
	}
	return strings.Join(out, " ")
}

func TestTheOldestHasAnAddress(t *testing.T) {
	x := New()
	x.Set(asks("b", 10, "192.0.2.1"), nil)
	x.Take()
	want(t, "b", served(x, "b"), "10.96.1.2 192.0.2.1")
	x.Set(asks("a", 20, "192.0.2.1"), nil)
	want(t, "changed", len(x.Take()), 2)
	want(t, "a", served(x, "a"), "10.96.1.1 192.0.2.1")
	want(t, "b", served(x, "b")+" "+reasons(x, "b"), "10.96.1.2 AddressTaken")
	if m := x.Problems(Key{"shop", "b"})[0].Message; !strings.Contains(m, "shop/a") || !strings.Contains(m, "192.0.2.1 port 80/TCP") || !strings.Contains(m, "older") {
		t.Errorf("the message is %q", m)
	}
	x.Set(asks("c", 20, "192.0.2.1"), nil) // as old as a: by name
	x.Take()
	want(t, "a", served(x, "a"), "10.96.1.1 192.0.2.1")
	x.Delete(Key{"shop", "a"})
	x.Take()
	want(t, "c", served(x, "c")+" "+reasons(x, "c"), "10.96.1.3 192.0.2.1 ")
	x.Set(asks("c", 20), nil)
	want(t, "changed", x.Take(), []Key{{"shop", "b"}, {"shop", "c"}})
	want(t, "b", served(x, "b")+" "+reasons(x, "b"), "10.96.1.2 192.0.2.1 ")
}

func TestOtherPortsAndProtocolsShareAnAddress(t *testing.T) {
	x := New()
	x.Set(asks("a", 20, "192.0.2.1"), nil)
	udp, other := asks("b", 10, "192.0.2.1"), asks("c", 10, "192.0.2.1")
	udp.Spec.Ports[0].Protocol, other.Spec.Ports[0].Port = corev1.ProtocolUDP, 81
	x.Set(udp, nil)
	x.Set(other, nil)
	x.Take()
	want(t, "addresses", []string{served(x, "a"), served(x, "b"), served(x, "c")}, []string{"10.96.1.1 192.0.2.1", "10.96.1.2 192.0.2.1", "10.96.1.3 192.0.2.1"})
}

func TestNobodyTakesAClusterIP(t *testing.T) {
	x := New()
	thief := asks("a", 1000, "10.96.1.2")
	x.Set(thief, nil)
	x.Set(asks("b", 1), nil)
	x.Take()
	want(t, "b", served(x, "b")+reasons(x, "b"), "10.96.1.2")
	want(t, "a", served(x, "a")+" "+reasons(x, "a"), "10.96.1.1 AddressTaken")
	if m := x.Problems(Key{"shop", "a"})[0].Message; !strings.Contains(m, "shop/b") || !strings.Contains(m, "whose ClusterIP it is") {
		t.Errorf("the message is %q", m)
	}
	lb := asks("c", 500)
	lb.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.96.1.2"}}
	x.Set(lb, nil)
	x.Take()
	want(t, "c", served(x, "c")+" "+reasons(x, "c"), "10.96.1.3 AddressTaken")
}

func TestAClusterIPAndANodePortOfTwo(t *testing.T) { // the end of the older one is heard of late
	x := New()
	with := func(name string, age int64) *corev1.Service {
		s := asks(name, age)
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports[0].NodePort = "10.96.9.9", []string{"10.96.9.9"}, 30080
		return s
	}
	x.Set(with("a", 20), nil)
	x.Set(with("b", 10), nil)
	x.Take()
	a, _ := x.Service(Key{"shop", "a"})
	b, _ := x.Service(Key{"shop", "b"})
	want(t, "node ports", []uint16{a.Ports[0].NodePort, b.Ports[0].NodePort}, []uint16{0, 30080})
	want(t, "a, which is gone", served(x, "a")+reasons(x, "a"), "")
	want(t, "b", served(x, "b")+reasons(x, "b"), "10.96.9.9")
	x.Delete(Key{"shop", "a"})
	x.Take()
	b, _ = x.Service(Key{"shop", "b"})
	want(t, "b", served(x, "b")+reasons(x, "b"), "10.96.9.9")
	want(t, "node port", b.Ports[0].NodePort, uint16(30080))
}

func TestReservedRanges(t *testing.T) {
	x := New()
	x.Set(asks("a", 20, "10.244.0.9", "192.0.2.1"), nil)
	x.Take()
	want(t, "before", served(x, "a"), "10.96.1.1 10.244.0.9 192.0.2.1")
	ranges := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")}
	x.Reserve(ranges)
	want(t, "changed", len(x.Take()), 1)
	want(t, "a", served(x, "a")+" "+reasons(x, "a"), "10.96.1.1 192.0.2.1 AddressReserved")
	x.Reserve([]netip.Prefix{ranges[1], ranges[0]})
	if len(x.stale) != 0 {
		t.Error("the same ranges in another order are looked at again")
	}
	x.Reserve([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")})
	x.Take()
	want(t, "ClusterIP too", served(x, "a")+" "+reasons(x, "a"), "10.244.0.9 192.0.2.1 AddressReserved")
	x.Reserve(nil)
	x.Take()
	want(t, "after", served(x, "a")+reasons(x, "a"), "10.96.1.1 10.244.0.9 192.0.2.1")
}

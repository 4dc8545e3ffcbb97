package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is what an index has been told, and draws what it is told next.
type world struct {
	*rand.Rand
	services map[Key]*corev1.Service
	slices   map[Key][]*discoveryv1.EndpointSlice
	vms      map[netip.Addr]VM
	reserved []netip.Prefix
}

func newWorld(seed uint64) *world {
	return &world{Rand: rand.New(rand.NewPCG(seed, 1)), services: map[Key]*corev1.Service{}, slices: map[Key][]*discoveryv1.EndpointSlice{}, vms: map[netip.Addr]VM{}}
}

func (w *world) key() Key { return Key{"shop", fmt.Sprintf("s%d", 1+w.IntN(5))} }

func (w *world) addr() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf([]string{"10.0.0.%d", "fd00::%d"}[w.IntN(2)], 1+w.IntN(6)))
}

func pick[T any](w *world, of ...T) T { return of[w.IntN(len(of))] }

func (w *world) service(key Key) *corev1.Service {
	n := key.Name[1:]
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, CreationTimestamp: metav1.NewTime(time.Unix(int64(w.IntN(3)), 0))}}
	s.Spec.ClusterIPs = pick(w, []string{"10.96.0." + n}, []string{"fd96::" + n}, []string{"10.96.0." + n, "fd96::" + n}, []string{"None"})
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	s.Spec.ExternalIPs = pick(w, nil, []string{"192.0.2.1"}, []string{"192.0.2.1", "2001:db8::1"}, []string{"10.96.0.3"})
	s.Status.LoadBalancer.Ingress = pick(w, nil, []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}})
	s.Spec.Ports = pick(w,
		[]corev1.ServicePort{{Name: "a", Port: 80, NodePort: int32(30000 + w.IntN(2))}},
		[]corev1.ServicePort{{Name: "a", Port: 80, Protocol: corev1.ProtocolUDP}, {Name: "b", Port: 80}},
		[]corev1.ServicePort{{Name: "b", Port: 81}})
	return s
}

func (w *world) endpointSlices() []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for range w.IntN(3) {
		es := &discoveryv1.EndpointSlice{AddressType: pick(w, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)}
		es.Ports = []discoveryv1.EndpointPort{{Name: ptr("a"), Port: ptr(int32(8080)), Protocol: ptr(pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP))}, {Name: ptr("b"), Port: ptr(int32(8080 + w.IntN(2)))}}
		for range w.IntN(4) {
			e := discoveryv1.Endpoint{Addresses: []string{w.addr().String()}, NodeName: pick(w, ptr("n1"), ptr("n2"), nil)}
			e.Conditions = discoveryv1.EndpointConditions{Ready: pick(w, ptr(true), ptr(false), nil), Serving: pick(w, ptr(true), ptr(false), nil), Terminating: pick(w, ptr(true), ptr(false), nil)}
			es.Endpoints = append(es.Endpoints, e)
		}
		out = append(out, es)
	}
	return out
}

// event changes the world and tells x of it.
func (w *world) event(x *Index, holds ...Hold) {
	key, addr := w.key(), w.addr()
	switch w.IntN(12) {
	case 0, 1, 2:
		w.services[key] = w.service(key)
		x.Set(w.services[key], w.slices[key])
	case 3, 4, 5, 6:
		w.slices[key] = w.endpointSlices()
		if s := w.services[key]; s != nil {
			x.Set(s, w.slices[key])
		}
	case 7:
		delete(w.services, key)
		x.Delete(key)
	case 8, 9:
		w.vms[addr] = VM{Node: pick(w, "n1", "n2", ""), Anchor: pick(w, "", "n1", "n2"), Hold: pick(w, holds...)}
		x.SetVM(addr, w.vms[addr])
	case 10:
		delete(w.vms, addr)
		x.DeleteVM(addr)
	case 11:
		w.reserved = pick(w, nil, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/31")}, []netip.Prefix{netip.MustParsePrefix("fd96::/64"), netip.MustParsePrefix("192.0.2.2/32")})
		x.Reserve(w.reserved)
	}
}

func (w *world) fresh() *Index {
	x := New()
	x.Reserve(w.reserved)
	for addr, vm := range w.vms {
		x.SetVM(addr, vm)
	}
	for key, s := range w.services {
		x.Set(s, w.slices[key])
	}
	x.Take()
	return x
}

// render is all that an index says, in words.
func render(x *Index) string {
	var b strings.Builder
	for _, s := range x.Services() {
		for _, p := range s.Ports {
			fmt.Fprintf(&b, "%s %s %s %d node port %d:", s.Key, p.Name, p.Protocol, p.Number, p.NodePort)
			for _, v := range p.VIPs {
				fmt.Fprintf(&b, " %s", v.Addr)
			}
			for _, e := range p.Endpoints {
				fmt.Fprintf(&b, " [%s %s %s %v]", e.Addr, e.Node, e.Anchor, e.Terminating)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// oracle is what render shall say, written from the API's words and not from the index: for every port every address that could be there is asked for in turn.
func (w *world) oracle() string {
	var b strings.Builder
	keys := []Key{}
	for key, s := range w.services {
		if s.Spec.ClusterIP != "None" {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, Key.Compare)
	for _, key := range keys {
		s := w.services[key]
		for _, p := range s.Spec.Ports {
			protocol := p.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			number := p.NodePort
			if number != 0 && w.first(func(o *corev1.Service) int {
				if slices.ContainsFunc(o.Spec.Ports, func(q corev1.ServicePort) bool { return q.NodePort == number }) {
					return 1
				}
				return 0
			}) != key {
				number = 0
			}
			fmt.Fprintf(&b, "%s %s %s %d node port %d:", key, p.Name, protocol, p.Port, number)
			w.oracleAddresses(&b, key, p)
			w.oracleEndpoints(&b, key, p.Name, protocol)
			b.WriteString("\n")
		}
	}
	return b.String()
}

// first is the Service that goes first of those that ask: rank is 0 if one does not ask, 1 if the API gave it what it asks for, and lower ranks go first.
func (w *world) first(rank func(*corev1.Service) int) Key {
	type one struct {
		rank int
		age  int64
		key  Key
	}
	var all []one
	for key, s := range w.services {
		if r := rank(s); r != 0 && s.Spec.ClusterIP != "None" {
			all = append(all, one{r, s.CreationTimestamp.Unix(), key})
		}
	}
	slices.SortFunc(all, func(a, b one) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		switch { // what the API gives out once belongs to whom it was given last
		case a.age != b.age && a.rank == 1:
			return int(b.age - a.age)
		case a.age != b.age:
			return int(a.age - b.age)
		}
		return strings.Compare(a.key.Name, b.key.Name)
	})
	return all[0].key
}

func (w *world) oracleAddresses(b *strings.Builder, key Key, port corev1.ServicePort) {
	cluster := func(s *corev1.Service, a string) bool { return slices.Contains(s.Spec.ClusterIPs, a) }
	external := func(s *corev1.Service, a string) bool {
		has := slices.Contains(s.Spec.ExternalIPs, a) || slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool { return i.IP == a })
		return has && slices.ContainsFunc(s.Spec.ClusterIPs, func(c string) bool { return strings.Contains(c, ":") == strings.Contains(a, ":") })
	}
	s := w.services[key]
	asked := slices.Clone(s.Spec.ClusterIPs)
	for _, a := range []string{"10.96.0.3", "192.0.2.1", "2001:db8::1", "192.0.2.2"} { // as VIPs are sorted: externalIPs before load balancer addresses
		if external(s, a) && !cluster(s, a) {
			asked = append(asked, a)
		}
	}
	for _, a := range asked {
		first := w.first(func(o *corev1.Service) int {
			if !slices.ContainsFunc(o.Spec.Ports, func(q corev1.ServicePort) bool {
				return q.Port == port.Port && (q.Protocol == corev1.ProtocolUDP) == (port.Protocol == corev1.ProtocolUDP)
			}) {
				return 0
			}
			switch {
			case cluster(o, a):
				return 1
			case external(o, a):
				return 2
			}
			return 0
		})
		reserved := slices.ContainsFunc(w.reserved, func(r netip.Prefix) bool { return r.Contains(netip.MustParseAddr(a)) })
		if first == key && !reserved {
			fmt.Fprintf(b, " %s", a)
		}
	}
}

func (w *world) oracleEndpoints(b *strings.Builder, key Key, name string, protocol corev1.Protocol) {
	for _, text := range []string{"10.0.0.%d", "fd00::%d"} {
		for n := 1; n <= 6; n++ {
			for _, number := range []int32{8080, 8081} {
				addr := netip.MustParseAddr(fmt.Sprintf(text, n))
				ready, ending := []string{}, []string{}
				for _, es := range w.slices[key] {
					for _, p := range es.Ports {
						if *p.Name != name || *p.Port != number || (p.Protocol != nil && *p.Protocol == corev1.ProtocolUDP) != (protocol == corev1.ProtocolUDP) {
							continue
						}
						for _, e := range es.Endpoints {
							if e.Addresses[0] != addr.String() {
								continue
							}
							node := ""
							if e.NodeName != nil {
								node = *e.NodeName
							}
							no := func(p *bool) bool { return p != nil && !*p }
							if !no(e.Conditions.Ready) {
								ready = append(ready, node)
							} else if !no(e.Conditions.Serving) && e.Conditions.Terminating != nil && *e.Conditions.Terminating {
								ending = append(ending, node)
							}
						}
					}
				}
				found := ready
				if len(ready) == 0 {
					found = ending
				}
				if len(found) == 0 {
					continue
				}
				slices.Sort(found)
				found = slices.Compact(found)
				if len(found) > 1 && found[0] == "" {
					found = found[1:]
				}
				node, anchor := found[0], found[0]
				if vm := w.vms[addr]; vm.Node != "" {
					node, anchor = vm.Node, vm.Node
					if vm.Anchor != "" {
						anchor = vm.Anchor
					}
				}
				fmt.Fprintf(b, " [%s %s %s %v]", netip.AddrPortFrom(addr, uint16(number)), node, anchor, len(ready) == 0)
			}
		}
	}
}

func TestRandomEvents(t *testing.T) {
	for seed := range uint64(100) {
		w, x := newWorld(seed), New()
		before := map[Key]string{}
		for step := range 60 {
			for range 1 + w.IntN(3) {
				w.event(x, NotHeld)
			}
			told := x.Take()
			got, fresh, oracle := render(x), render(w.fresh()), w.oracle()
			if got != fresh || got != oracle {
				t.Fatalf("seed %d, step %d:\nindex:\n%s\na new index:\n%s\noracle:\n%s", seed, step, got, fresh, oracle)
			}
			now := map[Key]string{}
			for line := range strings.Lines(got) {
				name, _, _ := strings.Cut(strings.TrimPrefix(line, "shop/"), " ")
				now[Key{"shop", name}] += line
			}
			for _, key := range []Key{{"shop", "s1"}, {"shop", "s2"}, {"shop", "s3"}, {"shop", "s4"}, {"shop", "s5"}} {
				if now[key] != before[key] && !slices.Contains(told, key) {
					t.Fatalf("seed %d, step %d: %s changed and nobody was told:\n%s\n%s", seed, step, key, before[key], now[key])
				}
			}
			before = now
		}
	}
}

// TestRandomHolds: whatever is held on the way, no address is there twice for one number of the listed, nothing is held of what no VM that moves has, and when all holds
// have ended everything is as if there had been none.
func TestRandomHolds(t *testing.T) {
	for seed := range uint64(100) {
		w, x := newWorld(seed), New()
		for step := range 60 {
			w.event(x, NotHeld, Moving, Arriving)
			x.Take()
			for _, s := range x.Services() {
				for _, p := range s.Ports {
					for i, e := range p.Endpoints {
						if i > 0 && p.Endpoints[i-1].Addr.Compare(e.Addr) >= 0 {
							t.Fatalf("seed %d, step %d: endpoints of %s are not sorted, or one is there twice: %+v", seed, step, s.Key, p.Endpoints)
						}
					}
				}
			}
		}
		for addr, vm := range w.vms {
			vm.Hold = NotHeld
			w.vms[addr] = vm
			x.SetVM(addr, vm)
		}
		x.Take()
		if got, oracle := render(x), w.oracle(); got != oracle {
			t.Fatalf("seed %d, all holds ended:\nindex:\n%s\noracle:\n%s", seed, got, oracle)
		}
		for key := range w.services {
			x.Delete(key)
		}
		if len(x.users)+len(x.claims)+len(x.entries)+len(x.stale) != 0 {
			t.Fatalf("seed %d: left of nothing: %d users, %d claims", seed, len(x.users), len(x.claims))
		}
	}
}

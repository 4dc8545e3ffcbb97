package policy

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/policy/oracle"
)

var (
	cases = flag.Int("cases", 10000, "random clusters for TestPolicyProperty")
	first = flag.Int("first", 0, "the first of them")
	seed  = flag.Uint64("seed", 0, "seed of the random clusters; 0 for a new one")
)

// flowsPerCase are tried in each random cluster.
const flowsPerCase = 40

func randomSeed(t *testing.T) uint64 {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return s
}

// TestPolicyProperty compiles random clusters, lets connections be judged by what OVN would make of the rows, and by an evaluator of the specification that knows nothing
// of either.
func TestPolicyProperty(t *testing.T) {
	s := randomSeed(t)
	var all tally
	for i := range *cases {
		i += *first
		w := newWorld(rand.New(rand.NewPCG(s, uint64(i))))
		bad, err := w.check(flowsPerCase, &all)
		if err != nil {
			t.Fatalf("-seed %d -first %d -cases 1: %v", s, i, err)
		}
		if bad != nil {
			w.shrink(*bad)
			t.Fatalf("-seed %d -first %d -cases 1:\n%s", s, i, w.explain(*bad))
		}
	}
	t.Logf("%d cases: connections %+v", *cases, all)
	if few := *cases * flowsPerCase / 20; *cases >= 100 && (all.free < few || all.byRule < few || all.forbidden < few) {
		t.Error("nearly none of one kind: the test proves little")
	}
}

// tally counts verdicts: nothing isolates, a rule permits, none does.
type tally struct{ free, byRule, forbidden int }

func (c *tally) count(v oracle.Verdict) {
	switch {
	case !v.Allowed:
		c.forbidden++
	case strings.Contains(v.Why, "["):
		c.byRule++
	default:
		c.free++
	}
}

// flow is a connection as the specification sees it, and its first packet as OVN sees it.
type flow struct {
	oracle.Flow
	packet packet
}

// check tries flows, and returns the first that the rows judge wrongly.
func (w *world) check(flows int, count *tally) (bad *flow, err error) {
	e, err := newEvaluator(Compile(Config{Join: join}, w.snapshot()))
	if err != nil {
		return nil, err
	}
	c := w.oracle()
	ends := w.ends()
	for range flows {
		f := w.flow(ends)
		want := c.Judge(f.Flow)
		if got, _ := e.admits(&f.packet); got != want.Allowed {
			return &f, nil
		}
		if wrong := w.midway(e, f.packet); wrong != "" {
			return nil, fmt.Errorf("%s, moving %v\n%s", wrong, w.moving, w.explain(f))
		}
		count.count(want)
	}
	return nil, nil
}

func (w *world) oracle() *oracle.Cluster {
	return &oracle.Cluster{Namespaces: w.namespaces, Policies: w.meant}
}

// end is an end of a flow, by both its names: to the specification, and in the packet.
type end struct {
	oracle.End
	addr    netip.Addr
	port    ident.PortName
	chassis []ident.PortName
}

// ends are all that can open or accept connections: pods, nodes, clients that a node source-NATs, addresses outside.
func (w *world) ends() []end {
	var out []end
	for _, p := range w.pods {
		out = append(out, w.podEnds(p)...)
	}
	for _, h := range w.hosts {
		for _, a := range h.Own {
			out = append(out, end{End: oracle.End{Addr: known(h, a), Node: h.Node}, addr: a})
		}
		for _, a := range h.Clients {
			out = append(out, end{End: oracle.End{Addr: known(h, a)}, addr: a})
		}
		for _, a := range h.IPs { // as a destination; a packet from it would be one of somebody who forges it
			out = append(out, end{End: oracle.End{Addr: a}, addr: a})
		}
	}
	for _, a := range addrs(outside...) {
		out = append(out, end{End: oracle.End{Addr: a}, addr: a})
	}
	return out
}

// known is the address by which the specification knows what has an address on the join network.
func known(h Host, join netip.Addr) netip.Addr {
	for _, a := range h.IPs {
		if a.Is4() == join.Is4() {
			return a
		}
	}
	return join
}

func (w *world) podEnds(p *worldPod) []end {
	if p.HostNetwork { // it is the node: what it sends comes from the node's own join address
		return nil
	}
	pod := &oracle.Pod{Namespace: p.Namespace, Name: p.name, Labels: p.Labels, Node: p.node}
	for _, port := range p.Ports {
		pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: port.Name, Protocol: port.Protocol, ContainerPort: port.Number})
	}
	var out []end
	for _, a := range p.IPs {
		out = append(out, end{End: oracle.End{Addr: a, Pod: pod}, addr: a, port: p.Port, chassis: []ident.PortName{ident.NodePort(p.node)}})
	}
	return out
}

// flow is a connection between two ends of one family, one of which is a pod.
func (w *world) flow(ends []end) flow {
	for {
		from, to := pick(w, ends), pick(w, ends)
		if from.addr.Is4() != to.addr.Is4() || from.port == "" && to.port == "" || from.port == to.port {
			continue
		}
		f := flow{Flow: oracle.Flow{From: from.End, To: to.End, Protocol: pick(w, protocols[:]), Port: pick(w, testPorts)}}
		f.packet = packet{
			inport: from.port, outport: to.port, src: from.addr, dst: to.addr, proto: strings.ToLower(string(f.Protocol)),
			srcPort: int(pick(w, testPorts)), dstPort: int(f.Port), chassis: to.chassis, ct: tracked{new: true},
		}
		if f.Protocol == corev1.ProtocolTCP {
			f.packet.flags = flagSYN
		}
		return f
	}
}

// shrink takes policies, rules, peers and ports away as long as the flow is judged wrongly.
func (w *world) shrink(f flow) {
	w.asked = slices.Clone(w.meant) // if it was about a rule that is wrong, nothing below is found, and all of it stays
	if !w.wrong(f) {
		return
	}
	drop := func(n int, without func(i int) func()) bool {
		for i := range n {
			restore := without(i)
			if w.asked = w.meant; w.wrong(f) {
				return true
			}
			restore()
			w.asked = w.meant
		}
		return false
	}
	for again := true; again; {
		again = drop(len(w.meant), func(i int) func() { return cutAt(&w.meant, i) })
		for _, np := range w.meant {
			in, out := &np.Spec.Ingress, &np.Spec.Egress
			again = drop(len(*in), func(i int) func() { return cutAt(in, i) }) || drop(len(*out), func(i int) func() { return cutAt(out, i) }) || again
			for i := range *in {
				r := &(*in)[i]
				again = drop(len(r.From), func(i int) func() { return cutAt(&r.From, i) }) || drop(len(r.Ports), func(i int) func() { return cutAt(&r.Ports, i) }) || again
			}
			for i := range *out {
				r := &(*out)[i]
				again = drop(len(r.To), func(i int) func() { return cutAt(&r.To, i) }) || drop(len(r.Ports), func(i int) func() { return cutAt(&r.Ports, i) }) || again
			}
		}
	}
}

// cutAt removes an element, and returns what puts it back.
func cutAt[T any](list *[]T, i int) func() {
	before := *list
	*list = slices.Delete(slices.Clone(before), i, i+1)
	return func() { *list = before }
}

func (w *world) wrong(f flow) bool {
	e, err := newEvaluator(Compile(Config{Join: join}, w.snapshot()))
	if err != nil {
		return false
	}
	got, _ := e.admits(&f.packet)
	return got != w.oracle().Judge(f.Flow).Allowed
}

func (w *world) explain(f flow) string {
	var b strings.Builder
	rows := Compile(Config{Join: join}, w.snapshot())
	e, err := newEvaluator(rows)
	if err != nil {
		return err.Error()
	}
	got, why := e.admits(&f.packet)
	fmt.Fprintf(&b, "%s %d from %s to %s\nthe specification: %+v\nthe rows: %v (%s)\n", f.Protocol, f.Port, f.From.Addr, f.To.Addr, w.oracle().Judge(f.Flow), got, why)
	fmt.Fprintf(&b, "packet %+v\nnamespaces %v\n", f.packet, w.namespaces)
	for _, p := range []*oracle.Pod{f.From.Pod, f.To.Pod} {
		if p != nil {
			fmt.Fprintf(&b, "%+v\n", *p)
		}
	}
	for _, np := range w.asked {
		text, _ := yaml.Marshal(struct {
			Name, Namespace string
			Spec            networkingv1.NetworkPolicySpec
		}{np.Name, np.Namespace, np.Spec})
		fmt.Fprintf(&b, "---\n%s", text)
	}
	b.WriteString(render(rows))
	return b.String()
}

package kernel

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// besideEvery is between two requests on what is there besides.
	besideEvery = 300 * time.Millisecond
	// besideConnections are opened by a pod on one of the VM's nodes to one on the other.
	besideConnections = 2
	// stickyServices are at most how many Services it may take until one's endpoint for somebody is the VM: each is one of two, by chance.
	stickyServices = 24
)

// keeping is a target, and what it answered to who asked for its name first: whose address was seen, and the name.
type keeping struct {
	netns, target, answer string
}

// named asks a target for its name until it answers.
func (s *handingOver) named(netns string, to netip.Addr, port int32) keeping {
	s.t.Helper()
	k := keeping{netns: netns, target: fmt.Sprintf("tcp://%s/%s", netip.AddrPortFrom(to, uint16(port)), echo.AskName)}
	s.await("name of "+k.target, func(ctx context.Context) (err error) {
		k.answer, err = s.ask(ctx, k)
		return err
	})
	return k
}

func (s *handingOver) ask(ctx context.Context, k keeping) (string, error) {
	out, err := s.In(ctx, k.netns, "tool", "probe", k.target)
	if err != nil {
		return "", err
	}
	f := strings.SplitN(strings.TrimSpace(out), " ", 4)
	if len(f) != 4 || f[0] != "ok" {
		return "", fmt.Errorf("asked in %s: %s", k.netns, out)
	}
	return f[3], nil
}

// keeps checks that everybody who is asked anew sees the same, and is the same.
func (s *handingOver) keeps() {
	s.t.Helper()
	for _, k := range s.kept {
		s.await("name of "+k.target, func(ctx context.Context) error {
			answer, err := s.ask(ctx, k)
			if err == nil && answer != k.answer {
				s.t.Errorf("asked in %s for its name %s says %q now, %q before the VM has moved", k.netns, k.target, answer, k.answer)
			}
			return err
		})
	}
}

// spec is slow traffic to an address.
func spec(to netip.Addr) traffic.Spec {
	every := func(d time.Duration) traffic.Duration { return traffic.Duration{Duration: d} }
	return traffic.Spec{Peers: []netip.Addr{to}, Echo: traffic.Echoing{Connections: 1, Interval: every(besideEvery)}, Silence: every(5 * time.Minute)}
}

// leavesCluster has the VM talk to somebody outside, by way of its anchor, the node on which it started: over TCP and UDP, and IPv4, which is all that the nodes' network has here.
func (s *handingOver) leavesCluster() {
	s.t.Helper()
	const netns = "outside" // a link has the name, which must be short
	addr, err := s.Outside(s.t.Context(), netns)
	if err != nil {
		s.t.Fatal(err)
	}
	s.removedLater(netns)
	s.serve(netns, "outside")
	s.clients["outside"] = s.traffic(netns)
	out := spec(addr)
	out.Probe.Interval = traffic.Duration{Duration: besideEvery}
	s.more = append(s.more, course{what: "to the outside", from: "vm", to: "outside", spec: out})
	k := s.named(s.vm.Netns, addr, tablePorts[0])
	if want := s.vm.Live.Node.Underlay.String() + " outside"; k.answer != want {
		s.t.Errorf("outside is seen %q, want %q: the anchor", k.answer, want)
	}
	s.kept = append(s.kept, k)
}

// stays has the VM talk to Services with affinity, and others to some whose endpoint for them is the VM.
func (s *handingOver) stays() {
	s.t.Helper()
	near := s.pod(0, "near")
	s.clients["near"], s.clients["pad"] = s.traffic(near.Netns), s.traffic(s.pad.Netns)
	for name, netns := range map[string]string{"vm": s.vm.Netns, "peer": s.peer.Netns, "backend": s.backend.Netns} {
		s.serve(netns, name)
	}
	s.nb("--type=port-group", "acl-add", "kernel-conntrack", "to-lport", "1002", fmt.Sprintf("outport == @kernel-conntrack && tcp.dst == %d", tablePorts[0]), "allow-related")
	for _, addr := range s.sticky("of-pods", s.peer, s.backend) {
		k := s.named(s.vm.Netns, addr, servicePort)
		_, to, _ := strings.Cut(k.answer, " ")
		s.kept = append(s.kept, k)
		s.more = append(s.more, course{what: "to a Service with affinity", from: "vm", to: to, spec: spec(addr)})
	}
	for i := range stickyServices {
		for _, addr := range s.sticky(fmt.Sprintf("of-vm-%d", i), s.vm.Live, s.peer) {
			for from, netns := range map[string]string{"near": near.Netns, "backend": s.backend.Netns} {
				k := s.named(netns, addr, servicePort)
				s.kept = append(s.kept, k)
				if strings.HasSuffix(k.answer, " vm") {
					s.more = append(s.more, course{what: "to the VM, by a Service with affinity", from: from, to: "vm", spec: spec(addr)})
				}
			}
		}
		if s.more[len(s.more)-1].to == "vm" {
			return
		}
	}
	s.t.Fatalf("the VM is nobody's endpoint in %d Services with affinity of which each has it as one of two", stickyServices)
}

// sticky is a Service with affinity, and its addresses.
func (s *handingOver) sticky(name string, pods ...*cluster.Pod) (addrs []netip.Addr) {
	s.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		Spec: corev1.ServiceSpec{
			SessionAffinity: corev1.ServiceAffinityClientIP, IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
			Ports: []corev1.ServicePort{
				{Name: "name", Protocol: tcp, Port: servicePort, TargetPort: intstr.FromInt32(tablePorts[0])},
				{Name: "traffic", Protocol: tcp, Port: 7, TargetPort: intstr.FromInt32(7)},
			},
		},
	}
	s.publish(svc, pods)
	for _, ip := range svc.Spec.ClusterIPs {
		addrs = append(addrs, netip.MustParseAddr(ip))
	}
	return addrs
}

// tracked is an entry as the tool prints it.
type tracked struct {
	Zone            int
	ID              string
	Protocol, State uint8
	// Timeout in seconds.
	Timeout int
	// Stays are hexadecimal digits: what is the same as long as the entry lives.
	Stays string
}

// Protocol and state of a connection that is open.
const (
	protocolTCP    = 6
	tcpEstablished = 3
)

// beside has pods on both of the VM's nodes talk to each other while the VM moves. What it returns checks then that no entry of others was touched: no connection that goes on has lost one, nothing
// else is gone before its time, and what is there is what it was, but for time, counters and state.
func (s *handingOver) beside() (check func()) {
	s.t.Helper()
	live := spec(netip.Addr{})
	live.Peers, live.Echo.Connections, live.Probe.Interval = s.pad.Addrs(), besideConnections, traffic.Duration{Duration: besideEvery}
	run := s.scene.begin(s.clients["near"], live)
	s.progress(s.clients["pad"], run)
	start, before := time.Now(), map[string]map[string]tracked{}
	for _, n := range s.Nodes {
		before[n.Name] = s.table(n)
	}
	return func() {
		s.t.Helper()
		s.progress(s.clients["pad"], run)
		same, live := 0, 0
		for _, n := range s.Nodes {
			now := s.table(n)
			for key, was := range before[n.Name] {
				is, there := now[key]
				goesOn := s.goesOnBeside(was)
				switch {
				case s.ofVM(was):
				case there && is.Stays != was.Stays:
					s.t.Errorf("an entry on %s was %+v and is %+v", n.Name, was, is)
				case there && goesOn:
					live++
					same++
				case there:
					same++
				case goesOn, was.Protocol != protocolTCP && time.Duration(was.Timeout)*time.Second > time.Since(start)+time.Second:
					s.t.Errorf("an entry on %s is gone: %+v", n.Name, was)
				}
			}
		}
		s.stop(s.clients["near"], run)
		s.t.Logf("%d entries of others are what they were, %d of them of open connections of pods beside the VM", same, live)
		if least := 2 * besideConnections; live < least {
			s.t.Errorf("%d entries of open connections of pods beside the VM are there, want %d at least: each is in the zones of two ports", live, least)
		}
	}
}

// goesOnBeside: an entry is of a connection of the pod beside the VM that is open.
func (s *handingOver) goesOnBeside(e tracked) bool {
	return e.Protocol == protocolTCP && e.State == tcpEstablished && hasEnd(e, s.pad.Addrs())
}

func (s *handingOver) ofVM(e tracked) bool { return hasEnd(e, s.vm.Live.Addrs()) }

// inShared are the VM's TCP entries in zones of a node that ports share, but for some.
func (s *handingOver) inShared(n *cluster.Node, but []tracked) (out []tracked) {
	s.t.Helper()
	zones := map[int]bool{}
	for _, m := range sharedZones.FindAllStringSubmatch(s.vs(n, "get", "bridge", "br-int", "external_ids"), -1) {
		zone, err := strconv.Atoi(m[1])
		if err != nil {
			s.t.Fatal(err)
		}
		zones[zone] = true
	}
	for _, e := range s.table(n) {
		known := slices.ContainsFunc(but, func(o tracked) bool { return o.Zone == e.Zone && o.ID == e.ID })
		if zones[e.Zone] && e.Protocol == protocolTCP && s.ofVM(e) && !known {
			out = append(out, e)
		}
	}
	return out
}

// sharedZones finds their numbers in a bridge's external_ids.
var sharedZones = regexp.MustCompile(`ct-zone-[^=]*_[sd]nat"?="?(\d+)`)

// hasEnd: an entry has one of some addresses.
func hasEnd(e tracked, addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return strings.Contains(e.Stays, hex.EncodeToString(a.AsSlice())) })
}

// table are a node's entries, by zone and ID.
func (s *handingOver) table(n *cluster.Node) map[string]tracked {
	s.t.Helper()
	out := map[string]tracked{}
	for _, e := range decodeLines[tracked](s.t, s.run(n.Name, "tool", "table")) {
		out[fmt.Sprint(e.Zone, " ", e.ID)] = e
	}
	return out
}

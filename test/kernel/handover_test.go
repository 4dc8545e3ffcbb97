package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// handoverGrace is short, for a test to see its end.
	handoverGrace = 4 * time.Second
	// watchedAfter is for how long connections are watched past it, and past a move that has none.
	watchedAfter = 6 * time.Second
	// stallLimit is how much longer than the interruption a connection may stand still in the end, when it is watched no more: what is slow sends once a second, and an emulated
	// processor is late at times. deadFor is what one does that has died: it does so for as long as it is watched, or until keepalive, the VM's first, brings it back.
	stallLimit = 4 * time.Second
	deadFor    = 5 * time.Second
	keepalive  = 15 * time.Second
	// movesUsually is their number with the handover in make test; MOVES=20 moves more often.
	movesUsually = 1
	// triesWithout the handover are moves, until a download dies.
	triesWithout = 4
	// goesOnWithin is how long connections are waited for that stand still when they are watched no more: TCP sends again after as long again as nothing was heard. underWay is for how long one may stand still that goes on.
	goesOnWithin = time.Minute
	underWay     = 3 * time.Second
	// triesAtLeast of what is forbidden make its refusal mean something.
	triesAtLeast = 10
)

// isolated is a VM and its peer, isolated both ways, and a pod that may not connect to them. VM and peer may connect to the traffic's ports of each other, and to the
// table's first port over TCP.
type isolated struct {
	*scene
	vm             *cluster.VM
	peer, stranger *cluster.Pod
	// fromPeer and fromVM make traffic.
	fromPeer, fromVM *traffic.Client
	// intruders are the logs of those who try what is forbidden all along.
	intruders []string
}

func newIsolated(t *testing.T) *isolated {
	t.Helper()
	s := &isolated{scene: newScene(t, "handover")}
	s.stranger = newScene(t, "handover-stranger").pod(2, "stranger")
	s.peer, s.vm = s.pod(2, "peer"), s.scene.vm(0, "vm")
	for _, netns := range []string{s.stranger.Netns, s.peer.Netns, s.vm.Netns} {
		s.serve(netns, netns)
	}
	s.fromPeer, s.fromVM = s.traffic(s.peer.Netns), s.traffic(s.vm.Netns)
	forbidden := map[string][]string{
		s.stranger.Netns: targets(s.vm.Live.Addrs(), tablePorts[0], "tcp", "udp", "sctp"),
		s.peer.Netns:     targets(s.vm.Live.Addrs(), tablePorts[1], "tcp", "udp", "sctp"),
		s.vm.Netns:       targets(s.stranger.Addrs(), tablePorts[0], "tcp", "udp", "sctp"),
	}
	for netns, targets := range forbidden {
		s.answered(netns, targets) // or that they do not answer later says nothing
	}
	s.isolate()
	for netns, targets := range forbidden {
		s.silent(netns, targets)
		s.intruders = append(s.intruders, s.daemon(netns, append([]string{"tool", "insist"}, targets...)...))
	}
	return s
}

// targets are the URLs of a port by all addresses and protocols.
func targets(addrs []netip.Addr, port int32, protocols ...string) []string {
	var out []string
	for _, a := range addrs {
		for _, p := range protocols {
			out = append(out, fmt.Sprintf("%s://%s", p, netip.AddrPortFrom(a, uint16(port))))
		}
	}
	return out
}

// answered waits until each of the targets has answered who asks in a namespace. On a machine that is busy they do not all in the same second.
func (s *isolated) answered(netns string, targets []string) {
	s.t.Helper()
	s.await("answers in "+netns, func(ctx context.Context) error {
		out, err := s.In(ctx, netns, append([]string{"tool", "probe"}, targets...)...)
		if err != nil {
			return err
		}
		targets = slices.DeleteFunc(slices.Clone(targets), func(t string) bool { return strings.Contains(out, "ok "+t+" ") })
		if len(targets) > 0 {
			return fmt.Errorf("%d do not answer:\n%s", len(targets), out)
		}
		return nil
	})
}

// silent waits until none of the targets answers.
func (s *isolated) silent(netns string, targets []string) {
	s.t.Helper()
	s.await("silence in "+netns, func(ctx context.Context) error {
		out, err := s.In(ctx, netns, append([]string{"tool", "probe"}, targets...)...)
		if n := answers(out); err == nil && n > 0 {
			err = fmt.Errorf("%d of %d answer:\n%s", n, len(targets), out)
		}
		return err
	})
}

// answers counts those in the output of the tool.
func answers(out string) (n int) {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "ok ") {
			n++
		}
	}
	return n
}

// isolate makes the policy, which goes with the test.
func (s *isolated) isolate() {
	s.t.Helper()
	var ports []networkingv1.NetworkPolicyPort
	for _, number := range []int32{7, 9, 19, tablePorts[0]} { // the first three are the traffic's
		ports = append(ports, port(tcp, intstr.FromInt32(number)))
	}
	ports = append(ports, port(udp, intstr.FromInt32(7))) // its probes
	everybody := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "both-ways"}, Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: everybody, Ports: ports}},
		Egress:      []networkingv1.NetworkPolicyEgressRule{{To: everybody, Ports: ports}},
	}}
	if err := s.API.Create(s.t.Context(), np); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.API.Delete(context.WithoutCancel(s.t.Context()), np); err != nil {
			s.t.Errorf("delete the policy: %v", err)
		}
	})
}

// TestKernelPolicyHandover moves a VM that is isolated both ways, under connections that its policy permits. With the handover's rules all go on, past the end of the
// grace; without them those die on which the other end speaks first. What is forbidden is refused all along.
func TestKernelPolicyHandover(t *testing.T) {
	s := newIsolated(t)
	moves, err := strconv.Atoi(os.Getenv("MOVES"))
	if err != nil {
		moves = movesUsually
	}
	for i := range moves {
		t.Run(fmt.Sprintf("move %d", i+1), s.allGoOn)
	}
	t.Cleanup(func() {
		if err := s.RestartController(context.WithoutCancel(t.Context()), controllerFlags()...); err != nil {
			t.Errorf("give the controller its flags back: %v", err)
		}
	})
	s.restart("--handover-rules=false")
	t.Run("without handover", func(t *testing.T) { // none does when the VM is the first to speak on each, which it is by chance
		for range triesWithout {
			if s.downloadsDie(t) {
				return
			}
		}
		t.Errorf("in %d moves without the handover no download by the VM stood still: what the test shows with it is nothing", triesWithout)
	})
	s.refused()
}

func (s *isolated) restart(flags ...string) {
	s.t.Helper()
	start := time.Now()
	if err := s.RestartController(s.t.Context(), flags...); err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("the controller has %s, after %s", flags, time.Since(start).Round(time.Millisecond))
}

// refused checks that who tried what is forbidden was refused. It waits until each has tried often enough: one that is not answered takes seconds.
func (s *isolated) refused() {
	s.t.Helper()
	for _, log := range s.intruders {
		var said string
		s.await("tries in "+log, func(ctx context.Context) error {
			b, err := s.ReadFile(ctx, log)
			said = string(b)
			if tried := strings.Count(said, "\n"); err == nil && tried < triesAtLeast {
				err = fmt.Errorf("%d, want at least %d", tried, triesAtLeast)
			}
			return err
		})
		admitted := answers(said)
		s.t.Logf("%s: %d tries, %d admitted", log, strings.Count(said, "\n"), admitted)
		if admitted > 0 {
			s.t.Errorf("%d forbidden connections were admitted, want none:\n%s", admitted, said[max(0, len(said)-2000):])
		}
	}
}

// other is the node, of the first two, where the VM is not.
func (s *isolated) other() *cluster.Node {
	if s.vm.Live.Node == s.Nodes[0] {
		return s.Nodes[1]
	}
	return s.Nodes[0]
}

// allGoOn moves the VM once. Some clients are silent all the time.
func (s *isolated) allGoOn(t *testing.T) {
	in := &isolated{}
	*in, in.scene = *s, s.scene.in(t)
	silent := map[string]net.Conn{
		"a client of the VM": in.dial(s.peer.Netns, s.vm.Live.Addrs()[0]), "a client in the VM": in.dial(s.vm.Netns, s.peer.Addrs()[1]),
	}
	c := in.carry()
	in.move(in.vm, in.other())
	in.await("end of the grace", func(ctx context.Context) error {
		n, err := in.along(ctx)
		if err == nil && n > 0 {
			err = fmt.Errorf("the port is in %d handover groups, want none after %s", n, handoverGrace)
		}
		return err
	})
	if n := in.labelled(); n == 0 {
		t.Errorf("no connection in the zone of %s on %s has the handover's label", in.vm.Port(), in.vm.Live.Node.Name)
	}
	time.Sleep(watchedAfter)
	c.goOn()
	in.answered(s.peer.Netns, targets(s.vm.Live.Addrs(), tablePorts[0], "tcp"))
	in.answered(s.vm.Netns, targets(s.peer.Addrs(), tablePorts[0], "tcp"))
	for _, conn := range c.stop() {
		if conn.died() {
			t.Errorf("%s; want it to go on: to stand still in the end for at most %s longer than the interruption, and, a download of the VM, never for a keepalive, %s", conn, stallLimit, keepalive)
		}
	}
	for who, conn := range silent {
		if err := echoed(conn); err != nil {
			t.Errorf("%s that was silent meanwhile: %v", who, err)
		}
	}
}

// downloadsDie moves the VM once, and says whether a download of its died.
func (s *isolated) downloadsDie(t *testing.T) bool {
	t.Helper()
	in := &isolated{}
	*in, in.scene = *s, s.scene.in(t)
	c := in.carry()
	in.move(in.vm, in.other())
	if n, err := in.along(t.Context()); err != nil || n > 0 {
		t.Errorf("without the rules the port is in %d handover groups: %v", n, err)
	}
	time.Sleep(watchedAfter)
	if n := in.labelled(); n > 0 {
		t.Errorf("without the rules %d connections have their label", n)
	}
	return slices.ContainsFunc(c.stop(), func(c carried) bool { return c.who == guests && c.Kind == traffic.Download && c.beyond() > deadFor })
}

// along says in how many directions the VM's port takes connections along now: of how many of the groups for that it is a member.
func (s *isolated) along(ctx context.Context) (n int, err error) {
	row, err := s.NBCtl(ctx, "get", "logical_switch_port", string(s.vm.Port()), "_uuid")
	if err != nil {
		return 0, err
	}
	for _, group := range []string{policy.IngressGroup, policy.EgressGroup} {
		ports, err := s.NBCtl(ctx, "--bare", "--columns=ports", "find", "port_group", "name="+group+"_handover")
		if err != nil {
			return 0, err
		}
		if strings.Contains(ports, strings.TrimSpace(row)) {
			n++
		}
	}
	return n, nil
}

// labelled counts the connections in the zone of the VM's port, where the VM is, that have the handover's label. It is the upper quarter of 128 bits.
func (s *isolated) labelled() int {
	s.t.Helper()
	n := s.vm.Live.Node
	zone, err := n.Zone(s.t.Context(), s.vm.Port())
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := n.AppCtl(s.t.Context(), "dpctl/dump-conntrack", fmt.Sprintf("zone=%d", zone))
	if err != nil || zone == 0 {
		s.t.Fatalf("read zone %d of %s on %s: %v", zone, s.vm.Port(), n.Name, err)
	}
	return strings.Count(out, fmt.Sprintf("labels=%#x", policy.HandoverLabel))
}

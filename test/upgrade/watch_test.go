package upgrade

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// probeInterval is between two packets to one address.
	probeInterval = 10 * time.Millisecond
	// strays is how many packets between two pods may be lost while a part is replaced: something else may make a link on the node meanwhile, upon which Open vSwitch's userspace datapath forgets
	// its routes for a moment. Usually it is none.
	strays = 2
	// busy is how many times as many as at other times may be lost meanwhile, by their share of what was sent: a machine that has more to do than it can loses packets of Open vSwitch's userspace
	// datapath at any time. Where nothing is lost at other times, strays is all.
	busy = 3
	// silence bounds the longest time without an answer: a machine with nothing to spare may forward late.
	silence = 10 * time.Second
	// connections are held from one pod to the other.
	connections = 4
)

// phase is the time in which a part was replaced.
type phase struct {
	part     string
	from, to time.Time
}

// pair are two pods on two nodes, one of which sends to the other for as long as the test runs.
type pair struct {
	run  *traffic.Run
	pods map[string][]netip.Addr
	// place is the sender's.
	place traffic.Place
}

// newPair makes the pods and begins their traffic: packets every 10 ms, and connections.
func newPair(t *testing.T, l *lab.Lab, client kubernetes.Interface, namespace string) *pair {
	t.Helper()
	nodes := l.NodeNames()
	p := &pair{pods: map[string][]netip.Addr{}}
	for _, node := range nodes[:2] {
		makePod(t, client, namespace, node)
	}
	for _, node := range nodes[:2] {
		p.pods[node] = addressesOf(t, client, namespace, node)
	}
	from, to := p.pods[nodes[0]], p.pods[nodes[1]]
	p.place = fixture.Place(t, l, nodes[0], from[0])
	fixture.Answer(t, fixture.Place(t, l, nodes[1], to[0]))
	run, err := traffic.Begin(t.Context(), p.place, traffic.Spec{
		Peers: to, Ports: fixture.Ports(), Probe: traffic.Probing{Interval: traffic.Duration{Duration: probeInterval}}, Echo: traffic.Echoing{Connections: connections},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.run = run
	begun(t, run)
	return p
}

// watchVM sends packets to a VM from a pod.
func watchVM(t *testing.T, from traffic.Place, vm []netip.Addr) *traffic.Run {
	t.Helper()
	run, err := traffic.Begin(t.Context(), from, traffic.Spec{Peers: vm, Probe: traffic.Probing{Interval: traffic.Duration{Duration: probeInterval}}})
	if err != nil {
		t.Fatal(err)
	}
	begun(t, run)
	return run
}

// begun waits until connections are open and packets are answered.
func begun(t *testing.T, run *traffic.Run) {
	t.Helper()
	eventually(t, func() error {
		if s := run.Status(); s.Broken > 0 || s.Open < s.Wanted || s.Replied == 0 {
			return fmt.Errorf("traffic has not begun: %+v", s)
		}
		return nil
	})
}

func makePod(t *testing.T, client kubernetes.Interface, namespace, node string) {
	t.Helper()
	grace := int64(1)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "echo", Image: lab.BusyboxImage, Command: []string{"echoserver"}}},
	}}
	if _, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// addressesOf are those of a node's pod when it runs.
func addressesOf(t *testing.T, client kubernetes.Interface, namespace, node string) (ips []netip.Addr) {
	t.Helper()
	eventually(t, func() error {
		p, err := client.CoreV1().Pods(namespace).Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodRunning || len(p.Status.PodIPs) != 2 {
			return fmt.Errorf("pod %s/%s is %s with addresses %v: want it to run with 2", namespace, node, p.Status.Phase, p.Status.PodIPs)
		}
		ips = nil
		for _, a := range p.Status.PodIPs {
			ip, err := netip.ParseAddr(a.IP)
			if err != nil {
				return err
			}
			ips = append(ips, ip)
		}
		return nil
	})
	return ips
}

// keptAddresses fails the test unless the pods have the addresses that they began with.
func (p *pair) keptAddresses(t *testing.T, client kubernetes.Interface, namespace string) {
	t.Helper()
	for node, had := range p.pods {
		if now := addressesOf(t, client, namespace, node); !slices.Equal(now, had) {
			t.Errorf("pod %s/%s had addresses %v, has %v: want the same", namespace, node, had, now)
		}
	}
}

// judge says which connections broke at any time, and what was lost while parts were replaced.
func judge(t *testing.T, what string, r *traffic.Result, phases []phase) {
	t.Helper()
	for _, c := range r.Connections {
		if c.Broken != "" || !c.Opened {
			t.Errorf("%s: TCP connection %d to %s broke after %s: %s: %s", what, c.Number, c.Peer, c.Ended.Round(time.Millisecond), c.Broken, c.Error)
		}
	}
	if len(r.Connections) > 0 {
		t.Logf("%s: %d TCP connections were held", what, len(r.Connections))
	}
	for i := range r.Probes {
		judgeProbes(t, what, &r.Probes[i], phases)
	}
}

// judgeProbes compares what was lost while parts were replaced with what was lost at other times.
func judgeProbes(t *testing.T, what string, p *traffic.Probes, phases []phase) {
	t.Helper()
	otherSent, otherLost := p.Counts.Sent, p.Counts.Lost
	for _, ph := range phases {
		otherSent -= sentWithin(p, ph.from, ph.to)
		otherLost -= len(p.LostWithin(ph.from, ph.to))
	}
	if otherSent == 0 {
		t.Fatalf("%s: no packet was sent to %s but while parts were replaced: there is nothing to compare with", what, p.Peer)
	}
	t.Logf("%s: while nothing was replaced %d of %d packets to %s were lost, those in migrations among them", what, otherLost, otherSent, p.Peer)
	for _, ph := range phases {
		sent, lost, gap := sentWithin(p, ph.from, ph.to), len(p.LostWithin(ph.from, ph.to)), p.Within(ph.from, ph.to)
		t.Logf("%s: %s, in %s: %d of %d packets to %s were lost, the longest time without an answer was %s", what, ph.part, ph.to.Sub(ph.from).Round(100*time.Millisecond), lost, sent, p.Peer,
			gap.Length().Round(time.Millisecond))
		if most := max(strays+busy*sent*otherLost/otherSent, lostAtOnce(p, phases)); lost > most || sent == 0 {
			t.Errorf("%s: %s, and %d of %d packets to %s were lost: want at most %d", what, ph.part, lost, sent, p.Peer, most)
		}
		if gap.Open || gap.Length() > silence {
			t.Errorf("%s: %s, and no answer came from %s for %s", what, ph.part, p.Peer, gap.Length())
		}
	}
}

// lostAtOnce is the longest run of packets that were lost while nothing was replaced: a moment at which the machine did not forward.
func lostAtOnce(p *traffic.Probes, phases []phase) (most int) {
	run := 0
	for seq, sent := range p.Sent {
		at := p.Start.Add(sent)
		replaced := slices.ContainsFunc(phases, func(ph phase) bool { return !at.Before(ph.from) && at.Before(ph.to) })
		if replaced || p.Arrived[seq] != traffic.Never {
			run = 0
			continue
		}
		run++
		most = max(most, run)
	}
	return most
}

// sentWithin counts the packets that were sent in a window of time.
func sentWithin(p *traffic.Probes, from, to time.Time) (n int) {
	for _, sent := range p.Sent {
		if at := p.Start.Add(sent); !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}
